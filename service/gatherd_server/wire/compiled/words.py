"""What the parts of the compiled answer tell each other: blocks of words, and what is in which.

A word is 8 bytes, an integer or an address. TABLE_… are words of the directory, a block for each
version of a table. ASKED_… are those of a lookup in a request, with three tensors, TENSOR_…, among
them. CALL_… are what a thread has: where things are, the limits, and sums over the request that is
read. Constants of a module, because numba knows those of no class.
"""

# Dimensions that are taken; the general way takes 31.
DIMS_MAX = 8

NOT_MINE = -1
"""What is returned for a request that the general way has to answer."""
ELSEWHERE = -2
"""ELSEWHERE − n: an answer of n bytes takes longer than the caller's turn, or more room."""
NO_LIMIT = (1 << 62) - 1
"""In place of a limit: nothing reaches it."""

# The requests that are answered.
LOOKUP = 0
LOOKUP_MANY = 1
LOOKUP_BAGS = 2
LOOKUP_BAGS_MANY = 3

# One version of a table.
TABLE_NAME_AT = 0
TABLE_NAME_BYTES = 1
TABLE_VERSION = 2
TABLE_IS_LIVE = 3
TABLE_ROWS_AT = 4
TABLE_ROW_COUNT = 5
TABLE_ROW_BYTES = 6
TABLE_DIM = 7
TABLE_KIND = 8
TABLE_COUNTERS_AT = 9
TABLE_COUNTER_COUNT = 10
TABLE_DEFAULT_AT = 11
TABLE_IS_NEAR = 12
TABLE_KEY_KIND = 13
TABLE_SLOTS_AT = 14
TABLE_SLOT_COUNT = 15
TABLE_SEED = 16
TABLE_KEYS_AT = 17
TABLE_KEY_DATA_AT = 18
TABLE_KEY_DATA_BYTES = 19
TABLE_OPEN_AT = 20
"""The words of kernels/open_rows.py; 0 for a table whose rows don't come and go."""
TABLE_WORDS = 24  # three cache lines

# What is under TABLE_KEY_KIND.
KEYS_NONE = 0
KEYS_STRINGS = 1
KEYS_INT64 = 2
KEYS_UINT64 = 3

# A tensor as a request has it; zeros when it has none.
TENSOR_DTYPE = 0
TENSOR_DIM_COUNT = 1
TENSOR_DATA_AT = 2
TENSOR_DATA_BYTES = 3
TENSOR_IS_THERE = 4
TENSOR_DIMS = 5
TENSOR_WORDS = TENSOR_DIMS + DIMS_MAX

# One table's part of a request: the tensor of its ids or keys (strings have no dtype), two more for
# bags, and numbers. Those from ASKED_TABLE on are found, not read.
ASKED_ROWS = 0
ASKED_OFFSETS = TENSOR_WORDS
ASKED_WEIGHTS = 2 * TENSOR_WORDS
ASKED_BY = 42
ASKED_NAME_AT = 43
ASKED_NAME_BYTES = 44
ASKED_DTYPE = 45
ASKED_MISSING = 46
ASKED_VERSION = 47
ASKED_LENGTHS_AT = 48
ASKED_LENGTHS_BYTES = 49
ASKED_IS_BAGS = 50
ASKED_POOLING = 51
ASKED_HAS_PADDING = 52
ASKED_PADDING = 53
ASKED_HAS_LOOKUP = 54
ASKED_TABLE = 55
ASKED_COUNT = 56
ASKED_VECTORS = 57
ASKED_KIND = 58
ASKED_DATA_BYTES = 59
ASKED_STATUS_BYTES = 60
ASKED_DIMS_BYTES = 61
ASKED_TENSOR_BYTES = 62
ASKED_RESPONSE_BYTES = 63
ASKED_STATUS_AT = 64
ASKED_INDEX_AT = 65
ASKED_MISSED = 66
ASKED_WORDS = 67

# What is under ASKED_BY.
BY_NOTHING = 0
BY_IDS = 1
BY_INTEGERS = 2
BY_STRINGS = 3

# What an answer is made with, and what is known of the request; those from CALL_IDS on are sums.
# CALL_ASKED_AT to CALL_UNIT_WORK are of an answer in pieces: its lookups, their rows, the lookup to
# go on with, and how many of its vectors were written, or HEAD before its head; of the last piece
# whether a torn row ended it, its bytes and its work; the most of both that a head or vector takes.
CALL_TABLES_AT = 0
CALL_SLOTS_AT = 1
CALL_SLOT_COUNT = 2
CALL_ALLOWED_AT = 3
CALL_COUNTED_AT = 4
CALL_OUT_AT = 5
CALL_OUT_BYTES = 6
CALL_TABLES_MAX = 7
CALL_IDS_MAX = 8
CALL_REPLY_BYTES_MAX = 9
CALL_WORK_BYTES_MAX = 10
CALL_KEYS_MAX = 11
CALL_TAKES_FAR = 12
CALL_MESSAGE = 13
CALL_COUNT = 14
CALL_ASKED_AT = 15
CALL_INDEX_AT = 16
CALL_REACHED = 17
CALL_REACHED_VECTORS = 18
CALL_IS_TORN = 19
CALL_WRITTEN = 20
CALL_WORKED = 21
CALL_UNIT_BYTES = 22
CALL_UNIT_WORK = 23
CALL_IDS = 24
CALL_KEYS = 25
CALL_REPLY_BYTES = 26
CALL_TOUCHED_BYTES = 27
CALL_INDEX_WORDS = 28
CALL_OPEN_COUNT = 29
CALL_WORDS = 30

HEAD = -1

# What is counted of a table.
COUNTED_LOOKUPS = 0
COUNTED_ROWS = 1
COUNTED_BYTES = 2
COUNTED_MISSING_IDS = 3
COUNTED_MISSING_KEYS = 4
COUNTED_WORDS = 5
