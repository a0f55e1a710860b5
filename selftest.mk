# Programs of the documented registration interface.
#
#   make -f selftest.mk selftest SRC=PROGRAM.c [OUT=PROGRAM]   build an unchanged source
#   make -f selftest.mk preload                                the object for programs already built
#   make -f selftest.mk uapi-install PREFIX=DIR                headers, unified-uapi.pc, preload object
#                                                              (libunified.so is installed by others)
#
# Include it below your own first target. Included by another makefile, it takes its variables: PKG_CONFIG_PATH says where an installed
# unified-uapi.pc is; without one, this tree's own library is taken, and built if it is not there.

UAPI_ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
UAPI_LIBDIR ?= $(UAPI_ROOT)/target/full-stack/lib
UAPI_BUILD ?= $(UAPI_ROOT)/target/full-stack
UAPI_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p;' $(UAPI_ROOT)/Cargo.toml | head -1)
PKG_CONFIG ?= pkg-config
OUT ?= $(notdir $(basename $(SRC)))
# What such programs link themselves.
SELFTEST_LIBS ?= -lxdp -lbpf -lelf -lz -pthread

# Prints the .pc file for: prefix, libdir, includedir, directory of the compatible headers.
uapi_pc = sed -e 's|@PREFIX@|$(1)|' -e 's|@LIBDIR@|$(2)|' -e 's|@INCLUDEDIR@|$(3)|' \
	-e 's|@COMPATDIR@|$(4)|' -e 's|@VERSION@|$(UAPI_VERSION)|' $(UAPI_ROOT)/packaging/unified-uapi.pc.in
UAPI_PRELOAD_FLAGS = -O2 -Wall -Wextra -Werror -fPIC -shared $(CFLAGS)

# The .pc file for use inside this tree: make -f selftest.mk uapi-pc
uapi-pc: $(UAPI_BUILD)/unified-uapi.pc

$(UAPI_BUILD)/unified-uapi.pc: $(UAPI_ROOT)/packaging/unified-uapi.pc.in $(UAPI_ROOT)/Cargo.toml
	@mkdir -p $(@D)
	$(call uapi_pc,$(UAPI_ROOT),$(UAPI_LIBDIR),$(UAPI_ROOT)/include,$(UAPI_ROOT)/include/compat) > $@

$(UAPI_ROOT)/target/full-stack/lib/libunified.so:
	$(MAKE) -C $(UAPI_ROOT) -f Makefile.full-stack lib

selftest: uapi-pc | $(UAPI_LIBDIR)/libunified.so
	@test -n "$(SRC)" || { echo "selftest: say SRC=path/to/program.c" >&2; exit 2; }
	@test -e "$(SRC)" || { echo "selftest: there is no $(SRC)" >&2; exit 2; }
	PKG_CONFIG_PATH="$${PKG_CONFIG_PATH:+$$PKG_CONFIG_PATH:}$(UAPI_BUILD)" && export PKG_CONFIG_PATH && \
	flags=$$($(PKG_CONFIG) --cflags --libs unified-uapi) && \
	$(CC) $(CFLAGS) -o $(OUT) $(SRC) $$flags $(LDFLAGS) $(SELFTEST_LIBS)

preload: $(UAPI_BUILD)/libunified-uapi-preload.so

$(UAPI_BUILD)/libunified-uapi-preload.so: $(UAPI_ROOT)/packaging/uapi-preload.c | $(UAPI_LIBDIR)/libunified.so
	$(CC) $(UAPI_PRELOAD_FLAGS) -o $@ $< \
		-L$(UAPI_LIBDIR) -Wl,-rpath,$(UAPI_LIBDIR) -lunified -ldl

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
# A package has it empty: the loader knows LIBDIR there.
UAPI_RPATH ?= -Wl,-rpath,$(LIBDIR)
UAPI_DATADIR ?= $(PREFIX)/share/unified
INSTALL ?= install
UAPI_COMPAT := $(patsubst $(UAPI_ROOT)/include/%,%,$(shell find $(UAPI_ROOT)/include/compat -name '*.h'))

uapi-install:
	$(INSTALL) -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	$(INSTALL) -m 644 $(UAPI_ROOT)/include/unified_uapi.h $(DESTDIR)$(INCLUDEDIR)
	for header in $(UAPI_COMPAT); do \
		$(INSTALL) -D -m 644 $(UAPI_ROOT)/include/$$header $(DESTDIR)$(UAPI_DATADIR)/$$header || exit; \
	done
	$(call uapi_pc,$(PREFIX),$(LIBDIR),$(INCLUDEDIR),$(UAPI_DATADIR)/compat) > $(DESTDIR)$(LIBDIR)/pkgconfig/unified-uapi.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/unified-uapi.pc
	$(CC) $(UAPI_PRELOAD_FLAGS) -o $(DESTDIR)$(LIBDIR)/libunified-uapi-preload.so $(UAPI_ROOT)/packaging/uapi-preload.c \
		-L$(UAPI_LIBDIR) $(UAPI_RPATH) -lunified -ldl

.PHONY: uapi-install selftest uapi-pc preload
