// A server of nodemailer's smtp-server that takes everything and discards it.
'use strict';

const fs = require('fs');

const options = JSON.parse(process.argv[2]);
const { SMTPServer } = require(options.package);

const settings = {
  authOptional: true,
  disableReverseLookup: true,
  disabledCommands: options.key ? ['AUTH'] : ['AUTH', 'STARTTLS'],
  logger: false,
  onData(stream, session, callback) {
    stream.on('end', () => callback(null));
    stream.resume();
  },
};
if (options.maxClients) settings.maxClients = options.maxClients;
if (options.key) {
  settings.key = fs.readFileSync(options.key);
  settings.cert = fs.readFileSync(options.certificate);
}

const server = new SMTPServer(settings);
server.on('error', () => {}); // clients that go without a word are no fault here
server.server.listen({ host: options.host, port: options.port, backlog: 1024 });
