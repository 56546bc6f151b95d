package watchcache

import (
	"encoding/json"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/resources"
)

// parseHeader reads a message's metadata into h without decoding the rest. The strings
// share raw's memory, which never changes.
//
// Field numbers: k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto and, for
// spec.nodeName, k8s.io/api/core/v1/generated.proto.
func parseHeader(row *resources.Row, raw []byte, h *Header) (node string, err error) {
	if row.Custom != nil {
		return "", parseJSONHeader(raw, h)
	}
	pod := row.Group == "" && row.Kind == "Pod"
	err = eachBytes(raw, func(num protowire.Number, v []byte) error {
		switch {
		case num == 1:
			return parseMeta(v, h)
		case num == 2 && pod:
			return eachBytes(v, func(num protowire.Number, v []byte) error {
				if num == 10 {
					node = str(v)
				}
				return nil
			})
		}
		return nil
	})
	return node, err
}

func parseMeta(b []byte, h *Header) error {
	return eachBytes(b, func(num protowire.Number, v []byte) error {
		switch num {
		case 1:
			h.Name = str(v)
		case 3:
			h.Namespace = str(v)
		case 5:
			h.UID = types.UID(str(v))
		case 9:
			h.Deleting = true
		case 11:
			var key, value string
			if err := eachBytes(v, func(num protowire.Number, v []byte) error {
				switch num {
				case 1:
					key = str(v)
				case 2:
					value = str(v)
				}
				return nil
			}); err != nil {
				return err
			}
			h.Labels = append(h.Labels, Label{key, value})
		case 13:
			var o metav1.OwnerReference
			if err := o.Unmarshal(v); err != nil {
				return err
			}
			h.Owners = append(h.Owners, o)
		}
		return nil
	})
}

func parseJSONHeader(raw []byte, h *Header) error {
	var obj struct {
		Metadata struct {
			Name              string                  `json:"name"`
			Namespace         string                  `json:"namespace"`
			UID               types.UID               `json:"uid"`
			Labels            map[string]string       `json:"labels"`
			OwnerReferences   []metav1.OwnerReference `json:"ownerReferences"`
			DeletionTimestamp *metav1.Time            `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &obj); err != nil {
		return err
	}
	m := &obj.Metadata
	*h = Header{Labels: h.Labels, Namespace: m.Namespace, Name: m.Name, UID: m.UID, Owners: m.OwnerReferences, Deleting: m.DeletionTimestamp != nil}
	for key, value := range m.Labels {
		h.Labels = append(h.Labels, Label{key, value})
	}
	return nil
}

func str(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

// eachBytes calls f with every length-delimited field of a message, in order.
func eachBytes(b []byte, f func(num protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
