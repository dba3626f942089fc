/* The operator QTable, and the table that QAggregate takes as its last step. */
#ifndef BGNN_TABLE_H
#define BGNN_TABLE_H

#include "call.h"

struct QTable;

/* Sets all but x and out from a table [channels, 256] or [1, 256]; of the latter, every code is a row. */
bool read_table(Call*, int64_t channels, const Input* table, QTable*);
bool q_table(Call*);

#endif
