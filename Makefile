# The front door.  Everything generated lies in build/.

.PHONY: bench figures help install-test packages run test test-long coverage mutate check series kernel shell watch-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

packages: ## Debian packages in build/packages: modules for Debian 12's kernel (DKMS), libfuse
	@tools/packages

install-test: ## the packages in a VM with Debian's own kernel, and a shell there
	@vm/packages shell

run: build/ready ## build, boot, show a FUSE daemon with and without passthrough, and the fio table
	@bench/run

ifdef T
test: build/ready ## everything that must hold; T=NAME: one kselftest, K=debug: on that kernel
	@vm/test $(or $(K),release) $(T)
else
test:
	@tools/test
endif

test-long: ## coverage, arm64, data races, mutation, long random runs: two hours
	@tools/install libc6-dev-arm64-cross qemu-system-arm
	@tools/test long

bench: build/ready ## every workload against its bare file system, tables and plots: an hour
	@tools/install python3-matplotlib dwarves
	@bench/all

coverage: build/ready ## which lines of the new kernel files the kselftests reach
	@tools/coverage

mutate: build/ready ## small faults put into them one at a time: does a test see each?
	@vm/kernel module
	@tools/mutate

check: build/ready ## the kernel series without running it: git am, checkpatch, sparse, W=1
	@tools/check

figures: ## write the last results of make run into README and cover letter
	@tools/figures

series: build/ready ## build/series/linux and build/series/libfuse, for git am
	@tools/series mail linux
	@tools/series mail libfuse

kernel: build/ready ## rebuild the release kernel and the root after a change in build/linux
	@true

shell: build/ready ## a shell in the VM, K=debug: on that kernel
	@vm/shell $(or $(K),release)

watch-test: build/ready ## planted faults that the watch over the VM must see
	@vm/watch-test release

clean: ## remove build/
	rm -rf build

# Cheap when nothing changed.  A tree with changes of its own is used as it is.
.PHONY: build/ready
build/ready:
	@tools/install
	@tools/prepare
