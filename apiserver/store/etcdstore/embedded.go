package etcdstore

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/keelson/keelson/apiserver/store"
)

// Embedded returns the store in a member that runs inside this process. A write is
// a call: no socket, no encoding but etcd's own log.
func Embedded(s *etcdserver.EtcdServer, prefix string) *Store {
	return open(&embedded{KVServer: v3rpc.NewQuotaKVServer(s), LeaseServer: v3rpc.NewQuotaLeaseServer(s), s: s}, prefix)
}

type embedded struct {
	pb.KVServer // checks requests and the quota
	pb.LeaseServer
	s *etcdserver.EtcdServer
}

var errStopped = errors.New("etcd has stopped")

func (e *embedded) Watch(ctx context.Context, from int64, fn func([]*mvccpb.Event, int64) error) error {
	kv := e.s.Watchable()
	if kv.Rev() < from {
		// A member that has just joined may be behind; one restored from a backup never gets there.
		resp, err := e.Range(ctx, &pb.RangeRequest{Key: []byte{0}, CountOnly: true})
		if err != nil {
			return translate(err)
		}
		if resp.Header.Revision < from {
			return store.ErrCompacted
		}
	}
	stream := kv.NewWatchStream()
	defer stream.Close()
	if _, err := stream.Watch(clientv3.AutoWatchID, []byte{0}, []byte{}, from+1); err != nil {
		return translate(err)
	}
	seen := from
	for {
		var resp mvcc.WatchResponse
		var ok bool
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.s.StoppingNotify():
			return errStopped
		case resp, ok = <-stream.Chan():
		}
		if !ok {
			return errStopped
		}
		if resp.CompactRevision != 0 {
			return store.ErrCompacted
		}
		if len(resp.Events) == 0 {
			continue
		}
		events := make([]*mvccpb.Event, len(resp.Events))
		for i := range resp.Events {
			events[i] = &resp.Events[i]
		}
		// While the watch catches up, resp.Revision runs ahead of the events.
		rev := events[len(events)-1].Kv.ModRevision
		if rev <= seen {
			continue
		}
		if err := fn(events, rev); err != nil {
			return err
		}
		seen = rev
	}
}
