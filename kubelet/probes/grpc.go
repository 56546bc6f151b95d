package probes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// checkGRPC asks the gRPC health checking protocol, without transport security.
func checkGRPC(ctx context.Context, t question, timeout time.Duration) attempt {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if t.Spec.GRPC.Service != nil {
		service = *t.Spec.GRPC.Service
	}
	address := net.JoinHostPort(t.IP, strconv.Itoa(int(t.Spec.GRPC.Port)))
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithUserAgent(userAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return attempt{Outcome: Failed, Message: fmt.Sprintf("error: failed to connect service at %q: %+v", address, err)}
	}
	defer conn.Close()
	// Connecting is waited for, as a server that is still starting deserves the whole
	// timeout and "could not connect" is a better answer than "unavailable".
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return attempt{Outcome: Failed, Message: fmt.Sprintf("timeout: failed to connect service %q within %v: %+v", address, timeout, ctx.Err())}
		}
	}
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		s, ok := status.FromError(err)
		switch {
		case ok && s.Code() == codes.Unimplemented:
			return attempt{Outcome: Failed, Message: "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message()}
		case ok && s.Code() == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
			return attempt{Outcome: Failed, Message: fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)}
		}
		return attempt{Outcome: Failed, Message: fmt.Sprintf("error: health rpc probe failed: %+v", err)}
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return attempt{Outcome: Failed, Message: fmt.Sprintf("service unhealthy (responded with %q)", answer.GetStatus().String())}
	}
	return attempt{Outcome: Passed, Message: "service healthy"}
}
