package supervisor

import (
	"net"
	"os"
)

// notifySocket is what a service has: the socket named by its environment.
func notifySocket() (net.Conn, error) {
	return net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
}
