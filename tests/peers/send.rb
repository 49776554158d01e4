# Ruby's Net::SMTP: ruby send.rb PORT SENDER RECIPIENT <message
require 'net/smtp'

port, from, to = ARGV
smtp = Net::SMTP.new('127.0.0.1', Integer(port))
smtp.disable_starttls
smtp.start { |session| session.send_message($stdin.binmode.read, from, to) }
