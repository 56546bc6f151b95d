package etcdstore

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson/keelson/apiserver/store"
)

// Commit is store.Store's. A refused one reads back which key was in the way.
func (s *Store) Commit(ctx context.Context, ops []store.Op) (int64, error) {
	txn := &pb.TxnRequest{}
	for _, op := range ops {
		k := s.key(op.Key)
		if op.Do == store.Remove && op.Seen == 0 {
			return 0, &store.ConflictError{Key: op.Key}
		}
		txn.Compare = append(txn.Compare, seenIs(k, op.Seen)...)
		txn.Failure = append(txn.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{
			RequestRange: &pb.RangeRequest{Key: k, KeysOnly: true},
		}})
		switch op.Do {
		case store.Write:
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: k, Value: op.Value},
			}})
		case store.Remove:
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &pb.DeleteRangeRequest{Key: k},
			}})
		}
	}
	resp, err := s.b.Txn(ctx, txn)
	if err != nil {
		return 0, translate(err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	for i, op := range ops {
		var is int64
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			is = kvs[0].ModRevision
		}
		if is != op.Seen {
			return 0, &store.ConflictError{Key: op.Key}
		}
	}
	return 0, store.ErrConflict
}
