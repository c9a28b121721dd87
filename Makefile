# For those whose fingers type make; every target is ./dev TARGET. Arguments: make test ARGS="-k mixture".
.PHONY: demo test lint bench help
demo test lint bench help:
	@./dev $@ $(ARGS)
.DEFAULT_GOAL := help
