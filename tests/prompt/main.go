// What Ollama makes of a Modelfile and of conversations: the text it hands to the model.
//
// In:  {"modelfile": text, "conversations": [[{"role", "content"}, ...], ...]} on stdin
// Out: {"system": text, "prompts": [text, ...]} on stdout
//
// Its Modelfile's rules (parser/parser.go, docs/modelfile.md) and its way of filling a template (template/template.go):
// system messages are joined, and neighbours of one role; SYSTEM is said where a conversation does not begin with one.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// unquote returns the text between the marks, and whether they are both there.
func unquote(text string) (string, bool) {
	for _, mark := range []string{`"""`, `"`} {
		if strings.HasPrefix(text, mark) {
			inside := len(text) >= 2*len(mark) && strings.HasSuffix(text, mark)
			if !inside {
				return "", false
			}
			return text[len(mark) : len(text)-len(mark)], true
		}
	}
	return text, true
}

// commands returns {name: value}; of a name said twice the last. A value goes on over line ends until its quotes close;
// characters that cannot be printed are left out.
func commands(modelfile string) map[string]string {
	found := map[string]string{}
	rest := modelfile
	for {
		rest = strings.TrimLeft(rest, " \t\r\n")
		if rest == "" {
			return found
		}
		if rest[0] == '#' {
			_, rest, _ = strings.Cut(rest, "\n")
			continue
		}
		name, after, _ := strings.Cut(rest, " ")
		var value strings.Builder
		end := len(after)
		for place, r := range after {
			if r == '\n' || r == '\r' {
				if _, closed := unquote(strings.TrimSpace(value.String())); closed {
					end = place
					break
				}
			}
			if r == '\n' || r == '\r' || r == '\t' || strconv.IsPrint(r) {
				value.WriteRune(r)
			}
		}
		text, closed := unquote(strings.TrimSpace(value.String()))
		if !closed {
			log.Fatalf("%s is not closed", name)
		}
		found[strings.ToUpper(name)] = text
		rest = after[end:]
	}
}

func render(shape *template.Template, system string, messages []message) string {
	if len(messages) == 0 || messages[0].Role != "system" {
		if system != "" {
			messages = append([]message{{"system", system}}, messages...)
		}
	}
	var systems []string
	var joined []*message
	for place := range messages {
		said := messages[place]
		if said.Role == "system" {
			systems = append(systems, said.Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == said.Role {
			joined[last].Content += "\n\n" + said.Content
		} else {
			joined = append(joined, &said)
		}
	}
	var prompt strings.Builder
	values := map[string]any{"System": strings.Join(systems, "\n\n"), "Messages": joined, "Response": ""}
	if err := shape.Execute(&prompt, values); err != nil {
		log.Fatal(err)
	}
	return prompt.String()
}

func main() {
	var told struct {
		Modelfile     string      `json:"modelfile"`
		Conversations [][]message `json:"conversations"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&told); err != nil {
		log.Fatal(err)
	}
	words := commands(told.Modelfile)
	shape := template.Must(template.New("").Option("missingkey=zero").Parse(words["TEMPLATE"]))
	prompts := []string{}
	for _, conversation := range told.Conversations {
		prompts = append(prompts, render(shape, words["SYSTEM"], conversation))
	}
	answer := map[string]any{"system": words["SYSTEM"], "prompts": prompts}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		log.Fatal(err)
	}
}
