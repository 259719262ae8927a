"""Reads the folder of a comparison and writes its report: statistics, tables and a page."""
