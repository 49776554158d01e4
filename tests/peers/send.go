// Go's net/smtp: send PORT SENDER RECIPIENT <message
package main

import (
	"io"
	"log"
	"net/smtp"
	"os"
)

func main() {
	message, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = smtp.SendMail("127.0.0.1:"+os.Args[1], nil, os.Args[2], []string{os.Args[3]}, message)
	}
	if err != nil {
		log.Fatal(err)
	}
}
