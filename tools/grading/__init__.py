"""The graders' side of the assignments: references, hidden instances, sandbox and tables."""
