package codec

import (
	"mime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is a serialization.
type Kind uint8

const (
	JSON Kind = iota
	YAML
	Protobuf
)

// Media types. Source: Kubernetes API concepts, "Resource encoding".
const (
	MediaJSON     = "application/json"
	MediaYAML     = "application/yaml"
	MediaProtobuf = "application/vnd.kubernetes.protobuf"
)

// Format is what a client wants to read.
type Format struct {
	Kind Kind
	// As is the kind asked for instead of the resource's own: "", "Table",
	// "PartialObjectMetadata" or "PartialObjectMetadataList". Group and Version go with it
	// ("meta.k8s.io", "v1").
	As, Group, Version string
	// Pretty: JSON is indented.
	Pretty bool
	// Stream: frames of a watch.
	Stream bool
}

// ContentType is the value of the answer's Content-Type header.
func (f Format) ContentType() string {
	switch f.Kind {
	case YAML:
		return MediaYAML
	case Protobuf:
		if f.Stream {
			return MediaProtobuf + ";stream=watch"
		}
		return MediaProtobuf
	}
	return MediaJSON
}

// Target is the kind asked for with As.
func (f Format) Target() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: f.Group, Version: f.Version, Kind: f.As}
}

// Negotiate picks the first acceptable form of an Accept header, by quality and
// then by order. An empty header means JSON. pretty is the decision about
// indentation that the caller has made from the query and the user agent.
// ok is false when nothing can be served: 406.
//
// As forms that are not transformations of metadata ("Table",
// "PartialObjectMetadata", "PartialObjectMetadataList" of meta.k8s.io v1 and
// v1beta1) are not acceptable, so that a client's fallback is used.
func Negotiate(accept string, stream, pretty bool) (f Format, ok bool) {
	k := question{accept, stream, pretty}
	if a, ok := answers.Load(k); ok {
		return a.(answer).Format, a.(answer).ok
	}
	f, ok = negotiate(accept, stream, pretty)
	if known.Load() < maxKnown && len(accept) <= 512 {
		if _, twice := answers.LoadOrStore(k, answer{f, ok}); !twice {
			known.Add(1)
		}
	}
	return f, ok
}

// Clients ask with few different headers, and reading one costs as much as reading an object.
var (
	answers sync.Map // question → answer
	known   atomic.Int32
)

const maxKnown = 256 // more are read each time

type question struct {
	accept         string
	stream, pretty bool
}

type answer struct {
	Format
	ok bool
}

func negotiate(accept string, stream, pretty bool) (f Format, ok bool) {
	if strings.TrimSpace(accept) == "" {
		return Format{Stream: stream, Pretty: pretty && !stream}, true
	}
	best := -1.0
	for _, clause := range strings.Split(accept, ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(clause))
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil || q <= 0 {
				continue
			}
		}
		if q <= best {
			continue
		}
		c := Format{Stream: stream}
		switch media {
		case MediaJSON, "*/*", "application/*":
		case MediaYAML, "application/x-yaml", "text/yaml":
			if stream {
				continue
			}
			c.Kind = YAML
		case MediaProtobuf:
			c.Kind = Protobuf
		default:
			continue
		}
		if as := params["as"]; as != "" {
			v, g := params["v"], params["g"]
			if g != "meta.k8s.io" || (v != "v1" && v != "v1beta1") {
				continue
			}
			switch as {
			case "Table":
				if c.Kind == Protobuf {
					continue // a Table has no protobuf form
				}
			case "PartialObjectMetadata", "PartialObjectMetadataList":
			default:
				continue
			}
			c.As, c.Group, c.Version = as, g, v
		}
		if p := params["pretty"]; p == "1" || p == "true" {
			c.Pretty = !stream
		}
		best, f, ok = q, c, true
	}
	f.Pretty = f.Pretty || (pretty && !stream)
	return f, ok
}

// WantsPretty reports whether JSON shall be indented: the query parameter "pretty" decides, then
// whether a person seems to read the answer.
func WantsPretty(parameter, agent string) bool {
	if parameter != "" {
		return parameter == "true" || parameter == "1"
	}
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}
