"""Tests mirror the packages; `strategies` makes random grids, expressions, masks and orders."""
