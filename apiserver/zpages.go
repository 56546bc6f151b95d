package apiserver

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/rest"
	"github.com/keelson/keelson/libs/config"
)

// page is what people read about the process: /statusz or /flagz, as text, or as an object of
// config.k8s.io when the client asks for that.
//
// Source: KEP-4827 and KEP-4828, beta in 1.36; kube-apiserver 1.36 for the words.
type page struct {
	kind   string // "Statusz"
	lines  func() [][2]string
	fields func() map[string]any // beside kind, apiVersion and metadata
}

const (
	zpagesGroup = "config.k8s.io"
	zpagesMedia = codec.MediaJSON + ", " + codec.MediaYAML + ", text/plain"
)

// form is one answer that a client accepts: text, or an object of a version.
type form struct {
	text, yaml bool
	version    string
}

// accepted is the first form that fits an Accept header, by quality and then by place.
func (p *page) accepted(header string) (form, bool) {
	type clause struct {
		media  string
		params map[string]string
		q      float64
	}
	var clauses []clause
	for text := range strings.SplitSeq(header, ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(text))
		if err != nil {
			continue
		}
		q := 1.0
		if v, ok := params["q"]; ok {
			q, _ = strconv.ParseFloat(v, 64)
		}
		clauses = append(clauses, clause{media, params, q})
	}
	slices.SortStableFunc(clauses, func(a, b clause) int { return cmp.Compare(b.q, a.q) })
	for _, c := range clauses {
		as, v := c.params["as"], c.params["v"]
		object := as == p.kind && c.params["g"] == zpagesGroup && (v == "v1beta1" || v == "v1alpha1")
		switch c.media {
		case "text/plain", "text/*", "*/*":
			if as == "" {
				return form{text: true}, true
			}
		}
		switch c.media {
		case codec.MediaJSON, "application/*", "*/*":
			if object {
				return form{version: v}, true
			}
		case codec.MediaYAML:
			if object {
				return form{version: v, yaml: true}, true
			}
		}
	}
	return form{}, false
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := form{text: true}
	if accept := r.Header.Get("Accept"); strings.TrimSpace(accept) != "" {
		var ok bool
		if f, ok = p.accepted(accept); !ok {
			rest.WriteError(w, r, notAcceptable("only the following media types are accepted: "+zpagesMedia, nil))
			return
		}
	}
	if f.text {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		p.write(w)
		return
	}
	if f.version == "v1alpha1" {
		w.Header().Set("Warning", fmt.Sprintf("299 - %q", "This version of the "+strings.ToLower(p.kind)+" endpoint is deprecated. Please use a newer version."))
	}
	object := map[string]any{"kind": p.kind, "apiVersion": zpagesGroup + "/" + f.version, "metadata": map[string]any{"name": "apiserver"}}
	maps.Copy(object, p.fields())
	media := codec.MediaJSON
	body, err := json.Marshal(object)
	if f.yaml {
		media = codec.MediaYAML
		body, err = yaml.Marshal(object)
	}
	if err != nil {
		rest.WriteError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", fmt.Sprintf("%s;g=%s;v=%s;as=%s", media, zpagesGroup, f.version, p.kind))
	_, _ = w.Write(body) // the client has gone: nobody to tell
}

func notAcceptable(message string, details *metav1.StatusDetails) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: message, Details: details,
	}}
}

// write is the form for people. What stands between name and value changes, as upstream, so that nobody
// comes to rely on it.
func (p *page) write(w io.Writer) {
	between := []string{":", ": ", "=", " "}[rand.IntN(4)]
	fmt.Fprintf(w, "\napiserver %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n",
		strings.ToLower(p.kind))
	for _, l := range p.lines() {
		if l[0] == "" {
			fmt.Fprintln(w)
			continue
		}
		fmt.Fprintf(w, "%s%s%s\n", l[0], between, l[1])
	}
}

// flagz shows the flags in use.
func (s *server) flagz() *page {
	flags := config.Flags(s.cfg)
	return &page{
		kind: "Flagz",
		lines: func() (out [][2]string) {
			for _, name := range slices.Sorted(maps.Keys(flags)) {
				out = append(out, [2]string{name, flags[name]})
			}
			return out
		},
		fields: func() map[string]any { return map[string]any{"flags": flags} },
	}
}

// statusz shows since when the process runs, what it is, and where there is more to read.
func (s *server) statusz(started time.Time) *page {
	build := config.Build()
	version := build.Major + "." + build.Minor
	binary, _, _ := strings.Cut(strings.TrimPrefix(build.GitVersion, "v"), "+")
	paths := func() []string {
		var list metav1.RootPaths
		if text, err := s.paths(); err != nil || json.Unmarshal(text, &list) != nil {
			return nil
		}
		seen := map[string]bool{}
		for _, p := range list.Paths {
			first, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
			switch first {
			case "", "api", "apis", "openapi", "openid", ".well-known": // not about the process
			default:
				seen["/"+first] = true
			}
		}
		return slices.Sorted(maps.Keys(seen))
	}
	return &page{
		kind: "Statusz",
		lines: func() [][2]string {
			up := int(time.Since(started).Seconds())
			return [][2]string{
				{},
				{"Started", " " + started.Format(time.UnixDate)},
				{"Up", fmt.Sprintf(" %d hr %02d min %02d sec", up/3600, up/60%60, up%60)},
				{"Go version", " " + build.GoVersion},
				{"Binary version", " " + binary},
				{"Emulation version", " " + version},
				{"Paths", " " + strings.Join(paths(), " ")},
			}
		},
		fields: func() map[string]any {
			return map[string]any{
				"startTime": metav1.NewTime(started), "uptimeSeconds": int64(time.Since(started).Seconds()),
				"goVersion": build.GoVersion, "binaryVersion": binary, "emulationVersion": version, "paths": paths(),
			}
		},
	}
}
