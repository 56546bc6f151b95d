package codec

import (
	"cmp"
	"mime"
	"slices"
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

// Negotiate picks the first acceptable form of an Accept header in the order of clauses. An empty header means JSON. pretty is the decision about
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
	for _, c := range clauses(accept) {
		kind, known := c.kind(stream)
		if !known {
			continue
		}
		f := Format{Kind: kind, Stream: stream}
		if as := c.params["as"]; as != "" {
			v, g := c.params["v"], c.params["g"]
			if g != "meta.k8s.io" || (v != "v1" && v != "v1beta1") {
				continue
			}
			switch as {
			case "Table":
				if kind == Protobuf {
					continue // a Table has no protobuf form
				}
			case "PartialObjectMetadata", "PartialObjectMetadataList":
			default:
				continue
			}
			f.As, f.Group, f.Version = as, g, v
		}
		if frames := c.params["stream"]; frames != "" && frames != "watch" {
			continue
		}
		p := c.params["pretty"]
		f.Pretty = !stream && (pretty || p == "1" || p == "true")
		return f, true
	}
	return Format{Pretty: pretty && !stream}, false
}

// Nothing is an Accept header that no form fits.
const Nothing = "no/form"

// Unformed is an Accept header without the clauses that ask for another form of an object.
func Unformed(accept string) string {
	if !strings.Contains(accept, "as=") {
		return accept
	}
	var left []string
	for _, clause := range strings.Split(accept, ",") {
		if _, p, err := mime.ParseMediaType(strings.TrimSpace(clause)); err == nil && p["as"] == "" {
			left = append(left, clause)
		}
	}
	if left == nil {
		return Nothing
	}
	return strings.Join(left, ",")
}

// A clause is what an Accept header names in one place.
type clause struct {
	media  string // type/subtype, as written: upstream minds the case
	params map[string]string
	q      float64
}

// clauses are those of an Accept header by quality, then by how exact they are, then by their place.
// A quality of zero makes one the last choice and does not exclude it, as upstream has it.
func clauses(accept string) []clause {
	var out []clause
	for text := range strings.SplitSeq(accept, ",") {
		parts := strings.Split(text, ";")
		c := clause{q: 1, params: map[string]string{}}
		first, second, whole := strings.Cut(parts[0], "/")
		c.media = strings.TrimSpace(first) + "/" + strings.TrimSpace(second)
		if !whole {
			if strings.TrimSpace(first) != "*" {
				continue
			}
			c.media = "*/*"
		}
		for _, p := range parts[1:] {
			k, v, _ := strings.Cut(p, "=")
			k, v = strings.TrimSpace(k), strings.TrimSpace(v)
			if k == "q" {
				c.q, _ = strconv.ParseFloat(v, 64)
				continue
			}
			c.params[k] = v
		}
		out = append(out, c)
	}
	open := func(c clause) int {
		if c.media == "*/*" {
			return 2
		}
		return strings.Count(c.media, "/*")
	}
	slices.SortStableFunc(out, func(a, b clause) int { return cmp.Or(cmp.Compare(b.q, a.q), open(a)-open(b)) })
	return out
}

// kind is the serialization that fits a clause.
func (c clause) kind(stream bool) (Kind, bool) {
	switch c.media {
	case MediaJSON, "*/*", "application/*":
		return JSON, true
	case MediaYAML:
		return YAML, !stream
	case MediaProtobuf:
		return Protobuf, true
	}
	return JSON, false
}

// Names reports whether an Accept header names one of the media types, whatever their parameters, or any
// type at all. Built-in kinds and documents are only served to whom it does: "application/*" is none.
func Names(accept string, media ...string) bool {
	if accept == "" {
		return true
	}
	for text := range strings.SplitSeq(accept, ",") {
		name, _, _ := strings.Cut(text, ";")
		if name = strings.TrimSpace(name); name == "*/*" || slices.Contains(media, name) {
			return true
		}
	}
	return false
}

// WantsPretty reports whether JSON shall be indented: the query parameter "pretty" decides, then
// whether a person seems to read the answer.
func WantsPretty(parameter, agent string) bool {
	if parameter != "" {
		return parameter == "true" || parameter == "1"
	}
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}
