"""Everything that only an accelerator can say, in one program.

    python -m benchmarks.accelerator --out=DIR
    python -m benchmarks.accelerator --out=DIR --sections=card,truth --budget_secs=120
    python -m benchmarks.accelerator --out=DIR --rehearse        tiny sizes, on any machine
    python -m benchmarks.accelerator --render=DIR                the tables, as Markdown

Each section is a process of its own with a time limit. DIR/results.jsonl gets a line for each row
of figures as soon as it is known, so that what a stopped program measured is kept; the same command
measures what is missing. See benchmarks/README.md.
"""
