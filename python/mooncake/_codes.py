"""The numbers of include/mooncake/err.h and store.h that the package looks at; tests/py/test_package.py compares them."""

INVAL, TIMEDOUT, STALE, CLOSED, UNSUPPORTED, PEER_DEAD = -1, -4, -10, -13, -15, -24  # enum mc_err, as calls return it

INTERNAL_ERROR, INVALID_PARAMS, NOT_SUPPORTED = -1, -600, -1012  # enum mc_store_err
OBJECT_NOT_FOUND, OBJECT_HAS_LEASE = -704, -706
