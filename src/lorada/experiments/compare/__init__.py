"""``lorada compare``: trains several methods at matched sizes and says which differ in their scores."""
