"""Run a notebook and answer questions with what it defines; executed by itself, inside a sandbox.

Usage: inside.py PLACE FOLDER FD SECONDS MEMORY FILE. PLACE holds a task, the notebook's code cells
and the questions as JSON, and the library; the notebook runs in FOLDER. Answers are written to the
file descriptor FD, one JSON line each, as soon as they are known. Nothing here decides about
points, so nothing is lost when a notebook takes it apart.
"""

import contextlib
import json
import os
import resource
import sys


def main() -> None:
    """Set the limits, run the cells, answer the questions."""
    place, folder = sys.argv[1:3]
    out, seconds, memory, file = map(int, sys.argv[3:])
    limits = {"CPU": seconds, "AS": memory, "FSIZE": file, "CORE": 0, "NOFILE": 256}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # where it cannot be set, others watch
            kind = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(kind)
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (limit, limit))
    os.set_inheritable(out, False)
    with open(f"{place}/task.json", encoding="utf-8") as task:
        asked = json.load(task)
    sys.path.insert(0, f"{place}/library")
    os.chdir(folder)

    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    from icrl_lib.classroom import exchange

    def tell(**words: object) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell.instance(config=config)
    shell.ask_exit = lambda: None
    for number, source in enumerate(asked["cells"], start=1):
        try:
            result = shell.run_cell(source, store_history=False, silent=True)
            error = result.error_before_exec or result.error_in_exec
        except (Exception, SystemExit) as raised:
            error = raised
        if error is not None:
            tell(cell=number, error=f"{type(error).__name__}: {str(error)[:200]}")
    for question, (variable, sheet) in asked["questions"].items():
        if variable in shell.user_ns:
            tell(question=question, answer=exchange.ask(sheet, shell.user_ns[variable]))
        else:
            tell(question=question, answer={"missing": variable})
    tell(done=True)
    os._exit(0)  # threads and handlers that a notebook has left are not waited for


main()
