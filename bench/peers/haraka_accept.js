// A plugin of Haraka that makes no DNS query, and accepts every recipient.
'use strict';

exports.hook_lookup_rdns = (next) => next(OK, 'localhost');
exports.hook_rcpt = (next) => next(OK);
