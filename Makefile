# The commands of run.py by the names that make users expect. Options: make bench ARGS="operators --quick"
.PHONY: demo test bench lint docs

demo test bench lint docs:
	python3 run.py $@ $(ARGS)
