// A server with nodemailer's smtp-server that accepts and discards every message.
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
server.on('error', () => {}); // ignore clients that close without QUIT
server.server.listen({ host: options.host, port: options.port, backlog: 1024 });
