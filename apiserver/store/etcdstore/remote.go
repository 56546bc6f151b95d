package etcdstore

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/keelson/keelson/apiserver/store"
)

// Remote says where an etcd cluster is. All addresses are one cluster.
type Remote struct {
	Servers                   []string
	CAFile, CertFile, KeyFile string
	Log                       *zap.Logger
}

// Dial returns the store in an etcd cluster elsewhere. It does not wait for the
// cluster; close ends the connections.
func Dial(cfg Remote, prefix string) (s *Store, close func() error, err error) {
	var secure *tls.Config
	if cfg.CAFile != "" || cfg.CertFile != "" {
		info := transport.TLSInfo{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile}
		if secure, err = info.ClientConfig(); err != nil {
			return nil, nil, fmt.Errorf("etcd TLS files: %w", err)
		}
	}
	log := cfg.Log
	if log == nil {
		log = zap.NewNop()
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Servers, TLS: secure, Logger: log,
		DialTimeout: 20 * time.Second, DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("etcd at %v: %w", cfg.Servers, err)
	}
	conn := c.ActiveConnection()
	return open(&remote{c: c, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn)}, prefix), c.Close, nil
}

type remote struct {
	c     *clientv3.Client
	kv    pb.KVClient
	lease pb.LeaseClient
}

func (r *remote) Range(ctx context.Context, q *pb.RangeRequest) (*pb.RangeResponse, error) {
	return r.kv.Range(ctx, q)
}

func (r *remote) Txn(ctx context.Context, q *pb.TxnRequest) (*pb.TxnResponse, error) {
	return r.kv.Txn(ctx, q)
}

func (r *remote) Compact(ctx context.Context, q *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return r.kv.Compact(ctx, q)
}

func (r *remote) LeaseGrant(ctx context.Context, q *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return r.lease.LeaseGrant(ctx, q)
}

func (r *remote) Watch(ctx context.Context, from int64, fn func([]*mvccpb.Event, int64) error) error {
	// A member cut off from the others must not keep the watch and show nothing.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	watch := r.c.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from+1), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify())
	seen := from
	for resp := range watch {
		switch {
		case resp.CompactRevision != 0:
			return store.ErrCompacted
		case resp.Err() != nil:
			return translate(resp.Err())
		case resp.Created:
			if resp.Header.Revision < from {
				return store.ErrCompacted
			}
			continue
		}
		rev := resp.Header.Revision
		events := make([]*mvccpb.Event, len(resp.Events))
		for i, ev := range resp.Events {
			events[i] = (*mvccpb.Event)(ev)
		}
		if len(events) > 0 {
			rev = events[len(events)-1].Kv.ModRevision
		} else if !resp.IsProgressNotify() {
			continue
		}
		if rev <= seen {
			continue
		}
		if err := fn(events, rev); err != nil {
			return err
		}
		seen = rev
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errStopped
}
