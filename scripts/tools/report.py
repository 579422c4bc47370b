"""Write a page of everything that is known so far about the model of a member.

    python scripts/tools/report.py data/default/decrypted data/default/parsed ... data/default/10001/exported \\
        --target 10001 --voice data/default/10001/voice --codes data/default/10001/blind --share no --consent no \\
        --out data/default/10001/report

Writes index.html, for its owner, with links to the pages of other members; with --share yes also share.html, with
numbers and charts alone, and with --consent yes with messages and names. What is not there yet is left out, and the
page names the target that makes it.
"""

import huiyin.common.starting  # noqa: F401

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from huiyin.common.errors import UserError, run
from huiyin.common.stage import arguments

ANSWERS = ["yes", "no"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False)
    parser.add_argument("--target", required=True, help="the member")
    parser.add_argument("stages", nargs=7, type=Path, metavar="FOLDER", help="of each stage, decrypt to export")
    parser.add_argument("--voice", type=Path, required=True, metavar="FOLDER", help="of what voice measured")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], metavar="FILE", help="index.html of all members")
    parser.add_argument("--codes", type=Path, required=True, metavar="FOLDER", help="codes of the blind test")
    parser.add_argument("--share", choices=ANSWERS, required=True, help="write share.html, too")
    parser.add_argument("--consent", choices=ANSWERS, required=True, help="messages and names in it, too")
    parser.add_argument("--plan", type=Path, default=Path(), metavar="FILE", help="plan.json of `make plan`")
    args = parser.parse_args(argv)

    from jinja2 import UndefinedError  # here: what takes time to load

    from huiyin.report.blind import read_codes, texts_in
    from huiyin.report.facts import read_facts
    from huiyin.report.page import write_page
    from huiyin.report.report import report

    out = args.out.absolute()
    others = [path.absolute() for path in args.pages if path.absolute().parent != out]
    links = {path.parent.parent.name: quote(os.path.relpath(path, out)) for path in others}
    facts = read_facts(args.target, args.stages, args.voice, links, args.plan)
    page = args.out / "blind.html"
    played = read_codes(
        texts_in(args.codes), page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    )
    try:
        pages = {"index.html": report(facts, played, shared=False, texts=True, links=links)}
        if args.share == "yes":
            pages["share.html"] = report(facts, played, shared=True, texts=args.consent == "yes", links=links)
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        # of results that others have changed, or that are of an earlier version
        raise UserError(
            f"the results are not as they are written now ({type(error).__name__}); make verify tells which "
            "have been changed, make voice measures anew"
        ) from None
    for name, text in pages.items():
        write_page(args.out / name, text)
        print(f"report: {args.out / name}, {len(text.encode()) / 1000:,.0f} kB; open it in a browser", flush=True)


if __name__ == "__main__":
    run(main)
