"""temporary"""

from fercli.cli.options import show_files


def show(document, files):
    show_files(document, files)
