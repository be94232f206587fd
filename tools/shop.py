"""A page for class: what two systems recommend for one history, side by side, with their reasons.

python -m tools.shop [--dataset sample] [--model tiny-llama] [--port 8000]

`make shop` does the same. Only this machine can open the page; stop it with Ctrl-C. Notebook 01 must have run.
"""

import argparse
import functools
import socket
import sys
import threading
from pathlib import Path

import jinja2
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gloss_utils.recommender import SYSTEMS, Recommender
from gloss_utils.splits import load_prepared, load_task, purchase_days

HOST = "127.0.0.1"
MAX_USERS = 200  # to choose from
K = 5
# Titles may hold markup: autoescape makes it text, and the policy lets no script run.
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'"
}


def make_app(dataset: str = "sample", model: str = "tiny-llama", data_dir: str | Path = "data") -> FastAPI:
    """The page of one store; a system is loaded when it is first asked for."""
    prepared = load_prepared(dataset, data_dir)
    task, days, catalog = load_task(prepared), purchase_days(prepared), prepared.catalog
    users, busy = task.reviewer_ids[:MAX_USERS].tolist(), threading.Lock()

    @functools.cache
    def load(system: str) -> Recommender:
        return Recommender.load(dataset, model, data_dir=data_dir, system=system)

    def ask(system: str, history: list[str], dates: list | None) -> dict:
        try:
            table = load(system).recommend(history, K, dates, explain=True)
        except (ValueError, OSError) as error:  # an unknown system, or a notebook that has not run
            return {"system": system, "notes": [str(error)], "rows": []}
        return {"system": system, "notes": table.attrs["notes"], "rows": table.to_dict("records")}

    app = FastAPI(title="Two systems, one history", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other site's name for this page

    @app.get("/")
    def page(user: str = "", titles: str = "", left: str = "lis", right: str = "fused") -> HTMLResponse:
        row = users.index(user) if user in users else 0
        history, dates, bought = [line for line in titles.splitlines() if line.strip()], None, ""
        if not history:
            seen, bought = task.seen_items[row], catalog["asin"].iloc[task.targets[row]]
            history, dates = catalog["asin"].iloc[seen].tolist(), days[users[row]][: len(seen)] * 86_400
        with busy:  # one visitor after the other: a system is loaded once
            lists = [ask(system, history, dates) for system in (left, right)]
        names = dict(zip(catalog["asin"], catalog["title"]))
        shown = {"users": users, "user": users[row], "titles": titles, "systems": SYSTEMS}
        shown |= {
            "history": [names.get(entry, entry) for entry in history],
            "bought": bought,
            "lists": lists,
            "chosen": {"left": left, "right": right},
        }
        return HTMLResponse(
            TEMPLATES.get_template("shop.html").render(shown, store=prepared.dataset), headers=HEADERS
        )

    return app


def check_port(port: int) -> None:
    """Refuse a port that another program has, or that cannot be had, before the store is read."""
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError):
        other = f"choose another, as in make shop ARGS='--port {8001 if port == 8000 else 8000}'"
        raise ValueError(f"port {port} is taken or cannot be had: {other}") from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sample", help="a name, or a directory of your own such as ./my_store")
    parser.add_argument("--model", default="tiny-llama", help="of notebook 03, for the systems with texts")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(argv)
    try:
        check_port(options.port)
        app = make_app(options.dataset, options.model, options.data_dir)
    except (ValueError, OSError) as error:
        print(f"shop: {error}", file=sys.stderr)
        return 2
    print(f"open http://{HOST}:{options.port} (Ctrl-C stops it)", flush=True)
    uvicorn.run(app, host=HOST, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
