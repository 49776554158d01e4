// A plugin of Haraka's that asks no DNS, and takes every recipient.
'use strict';

exports.hook_lookup_rdns = (next) => next(OK, 'localhost');
exports.hook_rcpt = (next) => next(OK);
