/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates by name: chatml, llama2, llama3, mistral, gemma, zephyr, phi3. The template of a
 * file is recognised by its marks, never executed. Markers become control tokens, content never
 * does.
 */
#ifndef CR_CHAT_H
#define CR_CHAT_H

#include "model/tokenizer.h"

enum cr_chat {
    CR_CHAT_NONE,
    CR_CHAT_CHATML,
    CR_CHAT_LLAMA2,
    CR_CHAT_LLAMA3,
    CR_CHAT_MISTRAL,
    CR_CHAT_GEMMA,
    CR_CHAT_ZEPHYR,
    CR_CHAT_PHI3,
    CR_CHAT_UNKNOWN
};

const char *cr_chat_name(enum cr_chat c);       /* "chatml", ...; "" for NONE, "unknown" */
enum cr_chat cr_chat_by_name(const char *name); /* CR_CHAT_UNKNOWN if there is no such name */
/* From tokenizer.chat_template: NONE when absent, UNKNOWN when not recognised. Whether the template
 * adds a default system message when there is none is recognised too and kept in the tokens. */
enum cr_chat cr_chat_recognise(struct cr_str template_text);
/* See cr_chat_tokenize in crayon.h. default_system: added when the first message is not a system
 * message; NULL: none. */
enum cr_status cr_chat_encode(enum cr_chat c, const cr_tokenizer *t, const char *default_system,
                              const struct cr_message *messages, size_t n, bool open_turn,
                              struct cr_ids *ids, struct cr_error *err);
/* The default system message that this file's template adds, "" when it adds none. Free: cr_free.
 */
char *cr_chat_default_system(enum cr_chat c, struct cr_str template_text);

#endif
