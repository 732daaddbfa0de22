# Everything runs from a bare clone: Python 3.11 or newer, pip and make are all it takes.
PYTHON ?= python3
IN_VENV := .venv/bin/python
HTML := _build/html/index.html
PORT ?= 8000
# Two notebooks run side by side; the tensors are small, and more threads only wait for each other.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help book pdf serve test coverage colab bench notebooks address assignments grade clean

help:
	@echo "make book       build the book; prints the page to open"
	@echo "make pdf        print the whole book as one PDF; needs Chromium, or Google's Chrome"
	@echo "make serve      build it and serve it on http://127.0.0.1:$(PORT)"
	@echo "make test       lint, test the library, every notebook and the built book"
	@echo "make coverage   run the library's tests and say which of its lines they reach"
	@echo "make colab      run every chapter as Colab does (ten minutes)"
	@echo "make bench      measure speed and memory against a plain loop and the roofline; stores the result"
	@echo "make notebooks  execute every chapter again and store its outputs (CHAPTERS=\"a.ipynb b.ipynb\" for some)"
	@echo "make address    carry the address of the repository from _config.yml into every chapter"
	@echo "make assignments  make students' notebooks, solutions and autograders (COURSE=name for a course's own)"
	@echo "make grade SUBMISSIONS=folder  grade notebooks into tables and pages (ROSTER=file.csv COURSE=name)"
	@echo "make clean      remove what was built, the environment included"

# The stamp is newer than what it was installed from, or the environment is brought up to date.
.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(IN_VENV) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# A failed build is thrown away: Sphinx does not repeat the warnings of pages it has already read.
book: .venv/installed
	@.venv/bin/jupyter-book build . -W -n --keep-going --quiet || { rm -rf _build; exit 1; }
	@echo "The book is ready: $(CURDIR)/$(HTML)"

pdf: book
	$(IN_VENV) tools/pdf.py _build/html _build/book.pdf

serve: book
	@echo "http://127.0.0.1:$(PORT) (stop with Ctrl-C)"
	@$(IN_VENV) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

# One run and one summary: library tests, every notebook's stored outputs, a clean build of the book.
test: .venv/installed
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	.venv/bin/ty check --quiet icrl_lib
	$(IN_VENV) -m pytest --nbval --nbval-cell-timeout=120 --nbval-sanitize-with tests/nbval_sanitize.cfg -n 2 --dist loadfile --no-loadscope-reorder

coverage: .venv/installed
	$(IN_VENV) -m coverage run --source=icrl_lib -m pytest -q -n0 --ignore=tests/test_browser.py --ignore=tests/test_colab.py tests
	$(IN_VENV) -m coverage report -m --fail-under=95

colab: .venv/installed
	COLAB_CHAPTERS=all $(IN_VENV) -m pytest tests/test_colab.py -n 2 --dist loadfile

bench: .venv/installed
	$(IN_VENV) -m icrl_lib bench --output icrl_lib/experiments/results/bench.json

notebooks: .venv/installed
	$(IN_VENV) tools/notebooks.py run $(CHAPTERS)

address: .venv/installed
	$(IN_VENV) tools/notebooks.py address

assignments: .venv/installed
	$(IN_VENV) tools/classroom.py generate $(if $(COURSE),--course "$(COURSE)") $(if $(ROSTER),--per-student "$(ROSTER)")

grade: .venv/installed
	@test -n "$(SUBMISSIONS)" || { echo "Say which folder: make grade SUBMISSIONS=folder"; exit 2; }
	$(IN_VENV) tools/classroom.py grade "$(SUBMISSIONS)" $(if $(ROSTER),--roster "$(ROSTER)") $(if $(COURSE),--course "$(COURSE)")

clean:
	rm -rf _build .venv icrl_lib.egg-info
