from nnunetv2_plgcl.datasets.names import all_names, first, some

FIVE = ["a", "b", "c", "d", "e"]


def test_three_are_named_and_all_where_wanted():
    assert first(FIVE) == "a, b, c and 2 more" and first(FIVE[:3]) == "a, b, c"
    assert some(FIVE[:1]) == "Case a" and some(FIVE) == "Cases a, b, c and 2 more"
    with all_names():
        assert first(FIVE) == "a, b, c, d, e"
        with all_names(False):
            assert first(FIVE) == "a, b, c, d, e", "already wanted"
    with all_names(False):
        assert first(FIVE) == "a, b, c and 2 more"
    assert first([]) == ""
