"""Does DaRL work? The four claims of its parts, put to the test at an equal label budget; see docs/study.md."""
