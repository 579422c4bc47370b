"""deploy: the settings that connect the exported model to a chat platform."""

import json

import pytest

from helpers import make, receipt, run_script

SYSTEM = "你是“老陈”。"
PARAMETERS = {"temperature": 0.8, "top_p": 0.9}


@pytest.fixture
def deploy(tmp_path):
    """Return a function that prints the settings for an export with the given receipt and an Ollama at `url`."""
    generated = tmp_path / "generated"
    generated.mkdir()
    (generated / "system.txt").write_text(SYSTEM, encoding="utf-8")
    used = {"gen.yaml": {"sha256": "0", "values": {"history_turns": 5}}}
    (generated / "receipt.json").write_text(json.dumps(receipt("gen") | {"settings": used}))

    def run(url, fixed_system=False):
        made = {"ollama": {"name": "huiyin-10002", "digest": "0"}, "parameters": PARAMETERS, "quantize": "q8_0"}
        (tmp_path / "receipt.json").write_text(json.dumps(receipt("export", fixed_system=fixed_system, **made)))
        (tmp_path / "export.yaml").write_text(f"ollama: {url}\n")
        options = ["--generated", generated, "--name", "huiyin-10002", "--export", tmp_path / "export.yaml"]
        done = run_script("tools/deploy", tmp_path, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_make_deploy_prints_the_settings_of_the_demo(demo):
    done = make(demo[0], "deploy", "CONFIG=demo", "RUN_IN=host")
    assert done.returncode == 0, done.stderr
    system = (demo[0] / "data/demo/10002/generated/system.txt").read_text(encoding="utf-8")
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "There is no Ollama model yet; this creates it:",
        "  ollama create huiyin-10002 --quantize q8_0 -f data/demo/10002/exported/Modelfile",
    ]
    assert system in lines


def test_deploy_names_addresses_model_and_parameters(deploy):
    output = deploy("http://192.168.1.2:11434/")
    assert output.startswith("The model huiyin-10002 at http://192.168.1.2:11434\n")
    lines = output.splitlines()
    for line in (
        SYSTEM,
        "    Provider        Ollama (ollama-chat)",
        "    Base URL        http://192.168.1.2:11434",
        "    Model name      huiyin-10002",
        "    Max round       5",
        'Between the messages of a reply it writes "，". docs/serving.md says how a platform can send them one by one.',
        "  Base URL          http://192.168.1.2:11434/v1",
        "  Model             huiyin-10002",
        "  Temperature       0.8, and top_p 0.9: Ollama uses 1.0 for clients that send none",
    ):
        assert line in lines


def test_deploy_recommends_a_fixed_system_prompt_unless_it_is_fixed(deploy):
    assert "Set fixed_system: true in export.yaml and" in deploy("http://127.0.0.1:11434")
    assert "The model ignores it:" in deploy("http://127.0.0.1:11434", fixed_system=True)


def test_deploy_tells_how_to_reach_the_ollama_of_the_containers(deploy):
    output = deploy("http://ollama:11434")
    assert output.startswith("This Ollama is in the containers' own network, and none of its ports is published")
