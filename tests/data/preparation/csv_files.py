"""Reading and writing the CSV files of a folder of drawn photos."""

import csv


def rows(folder, name):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write(folder, name, content):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(content)


def rejected(out):
    return dict(rows(out, "rejected.csv")[1:])
