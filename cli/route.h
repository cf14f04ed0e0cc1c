/* SPDX-License-Identifier: Apache-2.0 */
/* What `route explain` and `route calibrate` share: one answer of the device with all its signals,
 * and how a study is shown. Only with CRAYON_ROUTE. */
#ifndef CR_CLI_ROUTE_H
#define CR_CLI_ROUTE_H

#include "ask.h"
#include "jsonout.h"
#include "route/study.h"

/* The device, asked again and again. */
struct cr_device {
    const struct cr_args *a;
    struct cr_setup setup;
    cr_session *session;
    enum cr_form form;
    struct cr_meter meter;
    struct cr_buf text; /* the last answer */
    bool base_too;      /* --compare-base: measure |p_custom - p_base|_1 */
    cr_session *base;
    float *first; /* [n_vocab] of the first token, with base_too */
};

/* Close with cr_device_close in both cases. entropy_too as in cr_meter_init. */
enum cr_status cr_device_open(struct cr_device *d, const struct cr_args *a, bool entropy_too,
                              struct cr_error *err);
void cr_device_close(struct cr_device *d);
/* Answers e as `crayon run` would; fills d->text and the signals but for the scope. */
enum cr_status cr_device_answer(struct cr_device *d, const struct cr_example *e,
                                struct cr_signals *out, struct cr_error *err);
/* The text of an example as a user would type it. Free with cr_free; NULL: out of memory. */
char *cr_example_text(const struct cr_example *e);

/* Everything that `route calibrate` found out. */
struct cr_route_report {
    const char *palette, *examples;
    size_t n; /* rows answered */
    bool options, stored;
    const struct cr_calibration *calibration;
    bool has_study; /* the rows have answers */
    struct cr_study study;
    char no_learned[160];               /* why there is no LEARNED rule, or "" */
    size_t n_outside;                   /* rows of --out-of-scope */
    double auroc_outside;               /* scope tells them */
    double sent_outside[CR_RULE_COUNT]; /* share of them that leaves at the budget */
    double budget;
    uint64_t bytes_out; /* left the device for this report */
};
void cr_route_report_print(const struct cr_route_report *r);
int cr_route_report_json(const struct cr_route_report *r);
/* Accuracy against share sent as an SVG chart. */
enum cr_status cr_route_report_svg(const struct cr_route_report *r, const char *path,
                                   struct cr_error *err);

#endif
