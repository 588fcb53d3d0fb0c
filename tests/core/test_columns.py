import torch

from flowpolicy.core.columns import Columns, concatenated, plain


def numbered(rows):
    number = torch.arange(rows)
    return Columns({"obs": Columns(state=number[:, None].float()), "action": -number})


def test_a_path_leads_to_columns_of_columns():
    columns = numbered(3)
    assert columns["obs", "state"] is columns["obs"]["state"]
    columns["obs", "state"] = columns["action"]
    assert columns["obs"]["state"] is columns["action"] and columns.keys() == {"obs", "action"}


def test_rows_are_those_of_every_column():
    columns = numbered(5)
    assert columns.rows == 5
    some = columns.at(torch.tensor([4, 0]))
    assert (some.rows, some["obs", "state"].flatten().tolist(), some["action"].tolist()) == (2, [4, 0], [-4, 0])
    both = concatenated(some, columns.at(slice(1, 2)))
    assert both["obs", "state"].flatten().tolist() == [4, 0, 1] and both["action"].tolist() == [-4, 0, -1]


def test_plain_ones_are_dictionaries_all_the_way():
    found = plain(numbered(2))
    assert type(found) is dict and type(found["obs"]) is dict
    assert numbered(2).to("meta")["obs", "state"].device.type == "meta"
