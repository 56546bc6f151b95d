package rest

import (
	"sync/atomic"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// frames are the watch events that were encoded last: all watchers of an object want the
// same bytes at nearly the same moment. What is not there any more is encoded again.
//
// Bound: 128 frames of at most 64 KiB.
type frames [128]atomic.Pointer[frame]

const maxFrame = 64 << 10

type frameKey struct {
	item *watchcache.Item
	typ  watchcache.Type
	row  *resources.Row // as which it is served
	kind codec.Kind
}

type frame struct {
	frameKey
	text []byte
}

// get returns the event of an item as its row serves it. The text is shared and not changed.
func (f *frames) get(k frameKey) ([]byte, error) {
	slot := &f[(uint64(k.item.Rev)*4+uint64(k.kind))%uint64(len(f))]
	if have := slot.Load(); have != nil && have.frameKey == k {
		return have.text, nil
	}
	v, err := k.item.For(k.row)
	if err != nil {
		return nil, err
	}
	room := len(v.Raw()) + 256
	if k.kind != codec.Protobuf {
		room += len(v.Raw()) / 2
	}
	text, err := codec.AppendEvent(make([]byte, 0, room), k.row, eventNames[k.typ], v, codec.Format{Kind: k.kind, Stream: true})
	if err == nil && len(text) <= maxFrame {
		slot.Store(&frame{k, text})
	}
	return text, err
}
