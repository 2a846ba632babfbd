"""Folders and tables of labelled files, whatever the files hold: found, read, split."""
