"""Adapters: the reranker as a second stage of other people's search stacks.

Each module needs the package it is named after, and loads it when it is first called.
"""
