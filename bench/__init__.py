"""Long measurements on the test machines of tests/lab; run by `./dev bench`."""
