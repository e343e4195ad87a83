# The commands of run.py for those who type make. Options: make bench ARGS="operators --quick"
.PHONY: demo test bench lint docs

demo test bench lint docs:
	python3 run.py $@ $(ARGS)
