/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of the ledger as text: a JSON object, or a line of CSV (RFC 4180). */
#ifndef CR_LEDGER_TEXT_H
#define CR_LEDGER_TEXT_H

#include "base/bytes.h"
#include "route/ledger.h"

/* Appends one object without a line end; what is not known is null. False: out of memory. */
bool cr_ledger_json(struct cr_buf *b, const struct cr_ledger_row *row);
/* {"rows", "ok", "failed", "pending", "bytes_out", "bytes_in", "tokens_in", "tokens_out", "cost"}
 */
bool cr_ledger_totals_json(struct cr_buf *b, const struct cr_ledger_totals *t);
/* The line of names; one line of a row. Lines end in CR LF. A text that a spreadsheet would take
 * for a formula gets an apostrophe in front. */
bool cr_ledger_csv_head(struct cr_buf *b);
bool cr_ledger_csv(struct cr_buf *b, const struct cr_ledger_row *row);

#endif
