"""Memories by tenant and name, kept in a store, and what a service around them needs."""
