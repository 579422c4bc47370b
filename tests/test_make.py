"""The Makefile: what a newcomer types, what is redone when, and what mistakes say. Every run is a real one."""

import json
import os
import re
import shutil
import stat
import subprocess

import pytest

from helpers import ROOT, copy_project, make

STAGES = ["decrypt", "parse", "combine", "pair", "gen", "train", "export"]
RESULTS = ["decrypted", "parsed", "combined", "10002/paired", "10002/generated", "10002/trained", "10002/exported"]
DEMO = ["CONFIG=demo", "RUN_IN=host", "GPU=none"]


def stages_run(output):
    return re.findall(r"python scripts/(?:demo/|tools/)?(\w+)\.py", output)


def folder(project, stage):
    return project / "data/demo" / RESULTS[STAGES.index(stage)]


def ledger(project, stage):
    return json.loads((folder(project, stage) / "receipt.json").read_text(encoding="utf-8"))["ledger"]


def snapshot(path):
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_demo_walks_the_whole_road(demo):
    project, output = demo
    assert stages_run(output) == ["history", "tiny", "decrypt", "parse", "combine", "pair", "gen", "train", "export"]
    table = output[output.index("Asked the merged model") :]
    assert "gibberish" in table
    for stage in STAGES:
        found = ledger(project, stage)
        assert found["read"] > 0
        assert found["read"] == found["written"] + found.get("merged", 0) + sum(found["dropped"].values())
        assert re.search(rf"^{stage} +{found['read']:,} +{found['written']:,} ", table, re.MULTILINE)


def test_every_stage_reads_what_the_one_before_wrote(demo):
    project, _ = demo
    assert ledger(project, "decrypt")["written"] == ledger(project, "parse")["read"]
    assert ledger(project, "parse")["written"] == ledger(project, "combine")["read"]
    assert ledger(project, "pair")["written"] == ledger(project, "gen")["read"]
    made = ledger(project, "gen")
    assert made["written"] + made["merged"] == ledger(project, "train")["read"]


def test_the_files_of_the_contract_are_there_and_nobody_elses(demo):
    project, _ = demo
    names = [
        "answers.db",
        "demo/source",
        "demo/decrypted/nt_msg.db",
        "demo/parsed/messages.parquet",
        "demo/parsed/messages.csv",
        "demo/combined/turns.parquet",
        "demo/10002/paired/pairs.jsonl",
        "demo/10002/paired/unpaired.jsonl",
        "demo/10002/generated/alpaca.json",
        "demo/10002/generated/alpaca_eval.json",
        "demo/10002/generated/dataset_info.json",
        "demo/10002/trained/adapter/adapter_model.safetensors",
        "demo/10002/trained/training_loss.png",
        "demo/10002/exported/merged/model.safetensors",
        "demo/10002/exported/Modelfile",
    ]
    assert [name for name in names if not (project / "data" / name).is_file()] == []
    assert list((project / "data/demo/combined").glob("turns.*.json"))
    made = [path for path in (project / "data").rglob("*") if path.name != "README.md"]
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077 and path.is_dir()] == []
    assert stat.S_IMODE((project / "data").stat().st_mode) == 0o700
    assert [path for path in made if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert [path for path in made if path.name.endswith(".part")] == []


def test_the_model_is_asked_with_the_system_text_it_was_trained_with(demo):
    project, _ = demo
    rows = json.loads((folder(project, "gen") / "alpaca.json").read_text(encoding="utf-8"))
    modelfile = (folder(project, "export") / "Modelfile").read_text(encoding="utf-8")
    assert {row["system"] for row in rows} == {re.search(r'SYSTEM """(.*?)"""', modelfile, re.DOTALL)[1]}
    assert "rope_theta" in json.loads((folder(project, "export") / "merged/config.json").read_text(encoding="utf-8"))


def test_a_second_demo_does_nothing(demo):
    project, _ = demo
    again = make(project, "demo")
    assert again.returncode == 0
    assert stages_run(again.stdout) == []
    assert make(project, "--question", "all", *DEMO).returncode == 0


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("decrypt.yaml", STAGES),
        ("parse.yaml", STAGES[1:]),
        ("combine.yaml", STAGES[2:]),
        ("demo/pair.yaml", STAGES[3:]),
        ("prompts/pair.md", STAGES[3:]),
        ("demo/llm.yaml", STAGES[3:]),
        ("demo/gen.yaml", STAGES[4:]),
        ("prompts/persona.md", STAGES[4:]),
        ("demo/train.yaml", STAGES[5:]),
        ("demo/preflight.yaml", STAGES[5:]),
        ("demo/export.yaml", STAGES[6:]),
    ],
)
def test_a_touched_setting_redoes_its_stage_and_the_later_ones(demo, setting, redone):
    project, _ = demo
    file = project / "config" / setting
    before = file.stat()
    os.utime(file)
    try:
        assert stages_run(make(project, "--dry-run", "all", *DEMO).stdout) == ["plan", *redone]
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_voice_is_measured_after_the_training_and_again_after_the_export(demo):
    project, _ = demo
    planned = make(project, "--dry-run", "voice", *DEMO).stdout
    assert stages_run(planned) == ["voice"] and "--exported data/demo/10002/exported" in planned
    receipt = folder(project, "export") / "receipt.json"
    kept = receipt.rename(receipt.with_name("kept"))
    try:
        assert stages_run(make(project, "--dry-run", "voice", *DEMO).stdout) == ["voice"]
    finally:
        kept.rename(receipt)


def test_another_source_redoes_everything_whatever_its_date(demo):
    project, _ = demo
    other = project / "data/raw/other.db"
    other.parent.mkdir(exist_ok=True)
    shutil.copy2(project / "data/demo/sample/nt_msg.db", other)
    os.utime(other, (0, 0))
    planned = make(project, "--dry-run", "all", "SOURCE=data/raw/other.db", *DEMO)
    assert stages_run(planned.stdout) == ["plan", *STAGES]


def test_another_database_put_in_its_place_is_noticed_although_it_is_older(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data/demo", project / "data/demo")
    words = ["SOURCE=chat.db", f"KEY={project}/data/demo/sample/key.txt", "RUN_IN=host", "GPU=none", "TARGET=10002"]
    shutil.copy2(project / "data/demo/sample/nt_msg.db", project / "chat.db")
    assert make(project, "parse", *words).returncode == 0
    assert make(project, "--question", "parse", *words).returncode == 0
    os.utime(project / "chat.db", (1, 1))
    assert stages_run(make(project, "--dry-run", "all", *words).stdout) == ["plan", *STAGES]


def test_dates_and_comments_change_nothing(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data", project / "data", dirs_exist_ok=True)
    receipts = [folder(project, stage) / "receipt.json" for stage in STAGES]
    before = [file.read_bytes() for file in receipts]
    for file in (project / "config").rglob("*.yaml"):
        file.write_text(file.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    os.utime(project / "data/demo/sample/nt_msg.db", (1 << 32, 1 << 32))  # of the future
    done = make(project, "all", *DEMO)
    assert re.findall(r"^(\w+): (.*)$", done.stdout, re.MULTILINE) == [
        ("plan", "nothing is to do"),
        *((stage, "nothing has changed") for stage in STAGES),
    ], done.stderr
    assert [file.read_bytes() for file in receipts] == before
    assert make(project, "--question", "all", *DEMO).returncode == 0
    assert make(project, "status", *DEMO).stdout.splitlines() == [f"{stage}: done" for stage in STAGES]
    assert make(project, "verify", *DEMO).returncode == 0


def test_a_receipt_of_the_future_does_not_hide_an_edit(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data/demo", project / "data/demo")
    ahead = project / "config/parse.yaml"
    os.utime(ahead, (1 << 32, 1 << 32))
    line = "parse: config/parse.yaml is of the future, so that this is looked at each time; touch it"
    for _ in range(2):
        shown = make(project, "combine", *DEMO).stdout.splitlines()
        assert {line, "parse: nothing has changed", "combine: nothing has changed"} <= set(shown)
    os.utime(ahead)
    make(project, "combine", *DEMO)
    assert make(project, "--question", "combine", *DEMO).returncode == 0


def test_another_target_costs_only_pair_and_later(demo):
    project, _ = demo
    assert stages_run(make(project, "--dry-run", "all", "TARGET=10003", *DEMO).stdout) == ["plan", *STAGES[3:]]


def test_each_member_has_a_turn_and_one_who_fails_stops_nobody(demo):
    project, _ = demo
    done = make(project, "each", "TARGETS=10002 4040404 10002", *DEMO)
    assert done.returncode == 2
    assert stages_run(done.stdout) == ["pair"]  # what is done for all members is done once
    table = [line.rsplit(maxsplit=1)[0] for line in done.stdout.splitlines()[-4:]]
    done_line = f"{10002:<16}done"
    assert table == [f"{'TARGET':<16}ended", done_line, f"{4040404:<16}failed at pair", done_line]
    assert "each: not done: 4040404; the reason stands above, make all TARGET=... goes on" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ("", 'no TARGETS: say make each TARGETS="10001 10002"; `make members` lists who is there'),
        ("1 a/b", "TARGET=a/b: a user id has only letters, digits and _ . - in it; `make members` lists them"),
        ("1 parsed", "TARGET=parsed: data/default/parsed is for something else; `make members` lists the user ids"),
    ],
)
def test_each_looks_at_all_members_before_it_starts(project, targets, line):
    assert complaint(make(project, "each", "RUN_IN=host", f"TARGETS={targets}")) == line


def test_members_come_from_the_stages_all_targets_share(demo):
    project, _ = demo
    done = make(project, "members", *DEMO)
    assert done.returncode == 0, done.stderr
    assert stages_run(make(project, "--dry-run", "members", *DEMO).stdout) == ["members"]
    assert "\n  10002          老陈" in done.stdout
    assert done.stdout.splitlines()[-1] == "Put the TARGET of your choice into config/target.txt."
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (project / "data/demo/members").iterdir()}
    assert made == {"members.parquet": 0o600, "receipt.json": 0o600}


def test_a_failing_stage_leaves_the_earlier_result(demo):
    project, _ = demo
    before = snapshot(folder(project, "combine"))
    settings = project / "config/demo/combine.yaml"
    settings.write_text("merge: rule\nmax_gap_secs: 60\n")
    try:
        failed = make(project, "combine", *DEMO)
        assert failed.returncode == 2
        assert (
            "combine.py: config/demo/combine.yaml: unknown setting 'max_gap_secs'; known are: preset, merge, "
            "max_gap_seconds, max_others_between, quotes_start_a_turn, invisible_is_empty, special_texts"
        ) in failed.stderr.splitlines()
        assert snapshot(folder(project, "combine")) == before
        assert stages_run(make(project, "--dry-run", "all", *DEMO).stdout) == ["plan", *STAGES[2:]]
    finally:
        settings.unlink()


def test_clean_takes_a_stage_and_the_later_ones_but_never_the_answers(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data/demo", project / "data/demo")
    (project / "data/answers.db").touch()
    assert make(project, "clean-pair", *DEMO).returncode == 0
    left = [stage for stage in STAGES if folder(project, stage).exists()]
    assert left == STAGES[:3]
    assert (project / "data/answers.db").exists()


def test_help_lists_every_target_and_the_present_values():
    shown = make(ROOT).stdout
    files = ("Makefile", "developers.mk", "docker/docker.mk")
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for target in re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE):
        assert re.search(rf"^  {target} ", shown, re.MULTILINE)
    assert re.search(r"^  RUN_IN +docker ", shown, re.MULTILINE)
    assert shown.index("  decrypt ") < shown.index("  parse ") < shown.index("  export ")


def test_status_says_what_is_done(demo):
    project, _ = demo
    for run_in in ("host", "docker"):
        shown = make(project, "status", "CONFIG=demo", f"RUN_IN={run_in}").stdout
        assert shown.splitlines() == [f"{stage}: done" for stage in STAGES]


def test_a_csv_needs_no_decrypting(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copy(demo[0] / "data/demo/parsed/messages.csv", project / "chat.csv")
    done = make(project, "decrypt", "combine", "SOURCE=chat.csv", "RUN_IN=host")
    assert done.returncode == 0, done.stderr
    assert "decrypt: chat.csv is no database, there is nothing to decrypt" in done.stdout.splitlines()
    assert stages_run(done.stdout) == ["parse", "combine"]


def test_a_folder_is_a_source_and_a_changed_file_in_it_is_noticed(tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(ROOT / "tests/cases/parse/wechat_pages_of_a_folder/source", project / "my pages")
    (project / "config/parse.yaml").write_text("zone: Asia/Shanghai\n")
    words = ["parse", "SOURCE=my pages", "RUN_IN=host"]
    assert stages_run(make(project, *words).stdout) == ["parse"]
    assert make(project, "--question", *words).returncode == 0
    (project / "my pages/88@chatroom_5000_10000.csv").touch()
    assert make(project, "--question", *words).returncode == 1
    assert "parse: nothing has changed" in make(project, *words).stdout


def test_a_database_is_known_by_its_first_bytes(project):
    (project / "history").write_bytes(b"SQLite header 3\0" * 64)
    planned = make(project, "--dry-run", "parse", "RUN_IN=host", "SOURCE=history")
    assert stages_run(planned.stdout) == ["decrypt", "parse"]


# ---- One line each


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


def complaint(done):
    """The one line on stderr; Make's own closing line about the failed recipe does not count."""
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not re.match(r"make: \*\*\* \[", line)]
    assert len(lines) == 1, done.stderr
    return re.sub(r"^Makefile:\d+: \*\*\* (.*)\.  Stop\.$", r"\1", lines[0])


def test_old_make(project):
    line = complaint(make(project, "MAKE_VERSION=4.2.1"))
    assert line.startswith("GNU Make 4.2.1 is too old: 4.3 or newer is needed")


def fake_python(project, body):
    program = project / "python-fake"
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)
    (project / ".venv").unlink()
    return f"PYTHON={program}"


def test_old_python(project):
    old = fake_python(project, '[[ "$1" == -V ]] && echo "Python 3.9.2" && exit 0\nexit 1')
    line = complaint(make(project, "sample", "RUN_IN=host", old))
    assert line.startswith("Python 3.11 or newer is needed, ")
    assert line.endswith("is Python 3.9.2: install one and say PYTHON=python3.12")


def test_no_venv_module(project):
    bare = fake_python(project, '[[ "$*" == *ensurepip* ]] && exit 1\nexit 0')
    assert complaint(make(project, "sample", "RUN_IN=host", bare)) == (
        "Python's venv module is missing: sudo apt install python3-venv"
    )


def test_blanks_in_the_path(tmp_path):
    (tmp_path / "my chats").mkdir()
    project = copy_project(tmp_path / "my chats")
    assert complaint(make(project, "help")) == (
        f"the path of this repository has blanks: {project}; move it to one without"
    )


@pytest.mark.parametrize("sign", [":", "$", '"', "`"])
def test_a_path_that_the_shell_would_read_otherwise(tmp_path, sign):
    project = copy_project(tmp_path / f"my{sign}chats")
    assert complaint(make(project, "help")) == (
        f'the path of this repository has one of : $ " ` in it: {project}; move it to one without'
    )


@pytest.mark.parametrize(
    "source", ["my  chat.db", "chat (1).csv", "ch'at$x.csv", "C:\\chat.db", "a;b.db", "聊天 #1.csv"]
)
def test_a_source_may_have_any_name(project, source):
    missing = complaint(make(project, "parse", "RUN_IN=host", f"SOURCE={source}"))
    hint = " (C:\\x is /mnt/c/x in WSL)" if source.startswith("C:") else ""
    assert missing == f"{source}: no such file; is that path right?{hint}"
    (project / source).write_text("it is there")
    planned = make(project, "--dry-run", "parse", "RUN_IN=host", f"SOURCE={source}")
    stages = ["decrypt", "parse"] if source.endswith(".db") else ["parse"]
    assert (planned.returncode, stages_run(planned.stdout)) == (0, stages)


def test_a_source_with_blanks_goes_through(demo, tmp_path):
    project = copy_project(tmp_path)
    folder, name = tmp_path / "Tencent Files", "聊天 $x 'a' (3).csv"
    folder.mkdir()
    shutil.copy(demo[0] / "data/demo/parsed/messages.csv", folder / name)
    words = ["combine", f"SOURCE={folder}/{name}", "RUN_IN=host"]
    assert make(project, *words).returncode == 0
    assert make(project, "--question", *words).returncode == 0
    assert "parse: done" in make(project, "status", *words[1:]).stdout


def test_a_source_that_would_be_an_option(project):
    line = "SOURCE and KEY cannot begin with -: -a.csv data/raw/key.txt; write ./ before it"
    assert complaint(make(project, "parse", "RUN_IN=host", "SOURCE=-a.csv")) == line


def test_only_decrypt_sees_the_key(project):
    for script in ("demo/history", "decrypt"):
        (project / f"scripts/{script}.py").write_text("import os; print('key is', repr(os.environ.get('QQ_DB_KEY')))")
    key = "a'b\"c$d #e\\"
    shown = make(project, "decrypt", *DEMO, env={"QQ_DB_KEY": key})
    seen = [line for line in shown.stdout.splitlines() if line.startswith("key is")]
    assert seen == ["key is None", f"key is {key!r}"]


def test_an_override_that_goes_is_noticed_whatever_the_dates(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data/demo", project / "data/demo")
    override = project / "config/demo/combine.yaml"
    override.write_text("merge: none\n")
    assert make(project, "combine", *DEMO).returncode == 0
    override.unlink()
    assert stages_run(make(project, "--dry-run", "combine", *DEMO).stdout) == ["combine"]
    assert make(project, "combine", *DEMO).returncode == 0
    override.write_text("merge: none\n")
    os.utime(override, (0, 0))
    assert stages_run(make(project, "--dry-run", "combine", *DEMO).stdout) == ["combine"]


@pytest.mark.parametrize("goal", ["all", "chat", "web", "deploy", "verify"])
def test_no_target(project, goal):
    assert complaint(make(project, goal, "RUN_IN=host")) == (
        "no TARGET: write the QQ number of the member to learn from into config/target.txt, or say TARGET=...; "
        "`make members` lists who is there"
    )


def test_what_lies_beside_the_file_that_a_link_leads_to_is_looked_at(project, tmp_path):
    files = tmp_path / "Tencent Files/nt_db"
    files.mkdir(parents=True)
    for name in ("nt_msg.db", "nt_msg.db-wal", "group_info.db", "profile_info.db"):
        (files / name).touch()
    (project / "data/raw").mkdir()
    (project / "data/raw/nt_msg.db").symlink_to(files / "nt_msg.db")
    assert make(project, "data/default/source").returncode == 0
    for name in ("nt_msg.db", "nt_msg.db-wal", "group_info.db", "profile_info.db"):
        assert make(project, "--question", "data/default/source").returncode == 0
        os.utime(files / name, (0, 0))
        assert make(project, "--question", "data/default/source").returncode == 1
        assert make(project, "data/default/source").returncode == 0
    lines = (project / "data/default/source").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1:] for line in lines] == [["0", "0000000000"]] * 4


@pytest.mark.parametrize("written", [b"\xef\xbb\xbf10001\n", b"10001\r\n"])
def test_target_file_from_notepad(project, written):
    (project / "config/target.txt").write_bytes(written)
    assert complaint(make(project, "pair", "RUN_IN=host")) == (
        "config/target.txt has a byte order mark or Windows line ends; write it anew: echo 10001 > config/target.txt"
    )


@pytest.mark.parametrize("target", ["a/b", "..", "小明", "1 2", "$(touch gone)", "a';touch gone;'"])
def test_odd_target(project, target):
    line = complaint(make(project, "pair", "RUN_IN=host", f"TARGET={target.replace('$', '$$')}"))
    assert line == f"TARGET={target}: a user id has only letters, digits and _ . - in it; `make members` lists them"
    assert not (project / "gone").exists()


@pytest.mark.parametrize("name", ["raw", "tiny", "bench", "answers.db", "answers.db-wal", "README.md"])
def test_a_config_with_the_name_of_something_else_in_data(project, name):
    line = f"CONFIG={name}: data/{name} is for something else; take another name"
    assert complaint(make(project, "parse", "RUN_IN=host", f"CONFIG={name}")) == line


@pytest.mark.parametrize("name", ["source", "decrypted", "parsed", "combined", "members"])
def test_a_target_with_the_name_of_something_else_in_the_results(project, name):
    line = f"TARGET={name}: data/default/{name} is for something else; `make members` lists the user ids"
    assert complaint(make(project, "pair", "RUN_IN=host", f"TARGET={name}")) == line


def test_no_card_is_said_before_hours_of_work(demo, tmp_path):
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data", project / "data", dirs_exist_ok=True)
    settings = project / "config/demo/pair.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("quotes_tested: 50", "quotes_tested: 40"))
    done = make(project, "all", "CONFIG=demo", "RUN_IN=host", "GPU=99")
    assert complaint(done).startswith("plan.py: GPU=99, but ")
    assert stages_run(done.stdout) == []


def test_no_database(project):
    assert complaint(make(project, "parse", "RUN_IN=host")) == (
        "data/raw/nt_msg.db: no such file; put your nt_msg.db there (see 'Your own data' in README.md) "
        "or name another file with SOURCE="
    )


def test_a_target_nobody_has(demo):
    assert complaint(make(demo[0], "pair", "TARGET=4040404", *DEMO)) == (
        "pair.py: nobody with the id 4040404 has written anything here; `make members` lists who is there, "
        "take one of those ids as TARGET"
    )


def test_wrong_key(demo, tmp_path):
    project, wrong = copy_project(tmp_path), tmp_path / "key.txt"
    shutil.copytree(demo[0] / "data/demo", project / "data/demo")
    wrong.write_text("0123456789abcdef\n")
    line = complaint(make(project, "decrypt", f"KEY={wrong}", *DEMO))
    assert "wrong key" in line
    assert "0123456789abcdef" not in line


def test_wrong_word_for_run_in(project):
    assert complaint(make(project, "parse", "RUN_IN=here")) == "RUN_IN=here: say docker or host"


def test_wrong_word_for_port(project):
    assert complaint(make(project, "web", "TARGET=1", "PORT=a")) == "PORT=a: say a number such as 8080"


def test_samples_shows_rows_with_their_origin(demo):
    shown = make(demo[0], "samples", *DEMO)
    assert shown.returncode == 0, shown.stderr
    rows = re.findall(r"^--- row \d+, turns \[\d+\], (quote|linker|llm|written)$", shown.stdout, re.MULTILINE)
    assert len(rows) == 10


def test_the_demo_shows_who_decided_and_who_finds_quotes_asked_blind(demo):
    receipt = json.loads((demo[0] / "data/demo/10002/paired/receipt.json").read_text(encoding="utf-8"))
    assert set(receipt["decided_by"]) == {"quote", "linker", "llm"}
    assert receipt["linker"] == {group: {"threshold": 0.6} for group in ("2900100300", "700100200")}
    quotes = receipt["quotes"]
    assert set(quotes) == {"tested", "in_reach", "found_by_rule", "found_by_linker", "found_by_llm"}
    assert f"the linker {quotes['found_by_linker']}, the rule on names {quotes['found_by_rule']}." in demo[1]


def test_no_secret_reaches_the_log(demo):
    key = (demo[0] / "data/demo/sample/key.txt").read_text(encoding="utf-8").strip()
    assert key not in demo[1]
    receipts = [path.read_text(encoding="utf-8") for path in (demo[0] / "data").rglob("receipt.json")]
    assert not any(key in text for text in receipts)


def test_nothing_of_ours_is_in_git(demo):
    subprocess.run(["git", "init", "-q"], cwd=demo[0], check=True)
    status = ["git", "status", "--porcelain", "-uall"]
    listed = subprocess.run(status, cwd=demo[0], capture_output=True, encoding="utf-8").stdout
    assert [line for line in listed.splitlines() if "data/" in line and "data/README.md" not in line] == []


def test_the_guides_second_way(demo, tmp_path, ollama):
    project = copy_project(tmp_path)
    shutil.copy(demo[0] / "data/demo/parsed/messages.csv", project / "chat.csv")
    (project / "config/llm.yaml").write_text(f"url: {ollama.url}\nnum_ctx: 16384\nparallel: 1\nmax_failed_share: 1\n")
    (project / "config/way2/gen.yaml").open("a").write("max_rubbish_share: 1\n")
    (project / "config/way2/pair.yaml").open("a").write("newest: 30\nbatch_size: 10\n")

    def merge_the_first_two(k, body):
        """As a good model would; what is to be written comes from the tiny one."""
        if "merged" not in body["format"]["properties"]:
            return None
        texts = re.findall(r"^\d+\. （\d+秒后）(.*)$", body["messages"][1]["content"], re.MULTILINE)
        return json.dumps({"merged": [{"first": "1", "last": "2", "text": "，".join(texts[:2])}]})

    ollama.before_chat = merge_the_first_two
    done = make(project, "gen", "CONFIG=way2", "RUN_IN=host", "TARGET=10002", "SOURCE=chat.csv")
    assert done.returncode == 0, done.stderr
    paired = project / "data/way2/10002/paired"
    combined = json.loads((project / "data/way2/combined/receipt.json").read_text(encoding="utf-8"))["ledger"]
    assert combined["merged"] == 0  # a message, a turn
    lines = [json.loads(row) for row in (paired / "unpaired.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (paired / "pairs.jsonl").read_text(encoding="utf-8") == ""
    assert {row["reason"] for row in lines} == {"empty_prompt"}
    found = json.loads((paired / "receipt.json").read_text(encoding="utf-8"))["ledger"]
    assert found["merged"] == sum(len(row["turn_ids"]) - 1 for row in lines) >= 3
    assert found["read"] == found["written"] + found["merged"] + sum(found["dropped"].values())
    of_gen = json.loads((project / "data/way2/10002/generated/receipt.json").read_text(encoding="utf-8"))["ledger"]
    assert of_gen["read"] == found["written"] == of_gen["written"] + of_gen["merged"] + sum(of_gen["dropped"].values())
