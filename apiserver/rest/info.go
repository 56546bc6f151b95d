package rest

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// Info is what a request asks for, read from its method, path and query alone.
// Authorization and the handlers read the same Info, so that what was allowed
// is what is done.
type Info struct {
	// Resource is false for paths outside /api/<version>/<resource> and
	// /apis/<group>/<version>/<resource>; then only Verb and Path are set.
	Resource bool
	// Verb is get, list, watch, create, update, patch, delete or deletecollection;
	// for other paths the lower-case method.
	Verb                string
	Prefix              string // "api" or "apis"
	Group, Version      string
	Plural, Subresource string
	Namespace, Name     string
	// Rest is what follows the subresource, without a leading slash (proxy paths).
	Rest string
	Path string
	// Fields are the terms of the field selector of a list, a watch or a deletecollection.
	Fields fields.Requirements
	// DryRun is "All" for what shall only be tried, "invalid" for what nobody knows, and empty for the rest.
	DryRun string
	// FieldValidation is the parameter of a create, update or patch when it is one that is known.
	FieldValidation string
	// Waited is what the request has spent waiting for others: for a seat, and for webhooks. It belongs
	// to the goroutine that serves the request.
	Waited time.Duration
	// Long says that the answer may take for ever: watches and streams. It is
	// outside the request timeout and the bound on requests in flight.
	Long bool
	// selectedName: Name came from the field selector metadata.name and not from the path.
	selectedName bool
	// watchPath: the path is of the older form, /watch/...
	watchPath bool
}

// Named reports whether the path itself names an object.
func (i *Info) Named() bool { return i.Name != "" && !i.selectedName }

// Scope is how much of the cluster a request is about. A created object counts as one.
func (i *Info) Scope() string {
	switch {
	case !i.Resource:
		return ""
	case i.Name != "" || i.Verb == "create":
		return "resource"
	case i.Namespace != "":
		return "namespace"
	}
	return "cluster"
}

// streams are the subresources whose answers may last.
var streams = map[string]bool{"attach": true, "exec": true, "log": true, "portforward": true, "proxy": true}

var methodVerbs = map[string]string{
	http.MethodPost: "create", http.MethodGet: "get", http.MethodHead: "get",
	http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
}

// ParseInfo reads a request. It never fails: what makes no sense as a resource
// path is a plain path, which authorization treats as a nonResourceURL.
//
// Source: Kubernetes documentation, "API concepts: resource URIs" and
// "Authorization overview: determine the request verb".
func ParseInfo(r *http.Request) *Info {
	in := &Info{Path: r.URL.Path, Verb: strings.ToLower(r.Method)}
	parts := split(r.URL.Path)
	if len(parts) < 3 || parts[0] != "api" && parts[0] != "apis" {
		return in
	}
	in.Prefix = parts[0]
	parts = parts[1:]
	if in.Prefix == "apis" {
		if len(parts) < 3 {
			return in
		}
		in.Group = parts[0]
		parts = parts[1:]
	}
	in.Version = parts[0]
	parts = parts[1:]
	in.Resource = true
	in.Verb = methodVerbs[r.Method]
	in.DryRun = dryRun(r)
	in.FieldValidation = fieldValidation(r)
	watchPath := parts[0] == "watch"
	in.watchPath = watchPath
	if watchPath { // deprecated /watch/ paths
		if len(parts) < 2 {
			return &Info{Path: r.URL.Path, Verb: strings.ToLower(r.Method)}
		}
		in.Verb = "watch"
		parts = parts[1:]
	}
	if parts[0] == "namespaces" && len(parts) > 1 {
		in.Namespace = parts[1]
		// /namespaces/x and its own subresources stay requests for the namespace itself.
		if len(parts) > 2 && !(len(parts) == 3 && (parts[2] == "status" || parts[2] == "finalize")) {
			parts = parts[2:]
		}
	}
	in.Plural = parts[0]
	if len(parts) > 1 {
		in.Name = parts[1]
	}
	if len(parts) > 2 {
		in.Subresource = parts[2]
		if len(parts) > 3 {
			in.Rest = afterParts(r.URL.Path, len(split(r.URL.Path))-len(parts)+3)
		}
	}
	if in.Name == "" && (in.Verb == "get" || in.Verb == "watch" || in.Verb == "delete") {
		q := query(r)
		sel, err := fields.ParseSelector(q.Get("fieldSelector"))
		if err != nil {
			sel = fields.Everything()
		}
		in.Fields = sel.Requirements()
		switch in.Verb {
		case "delete":
			in.Verb = "deletecollection"
		case "get":
			in.Verb = "list"
			if q.Has("watch") && (q.Get("watch") == "" || truthy(q.Get("watch"))) {
				in.Verb = "watch"
			}
		}
		if name, ok := sel.RequiresExactMatch("metadata.name"); ok && in.Verb != "deletecollection" && len(path.IsValidPathSegmentName(name)) == 0 {
			in.Name, in.selectedName = name, true
		}
	}
	in.Long = in.Verb == "watch" || streams[in.Subresource]
	return in
}

// query never fails: pairs that cannot be decoded are left out.
func query(r *http.Request) url.Values {
	if r.URL.RawQuery == "" {
		return nil
	}
	return r.URL.Query()
}

func dryRun(r *http.Request) string {
	if !strings.Contains(r.URL.RawQuery, "dryRun") {
		return ""
	}
	values := query(r)["dryRun"]
	for _, v := range values {
		if v != metav1.DryRunAll {
			return "invalid"
		}
	}
	if len(values) == 0 {
		return ""
	}
	return metav1.DryRunAll
}

func fieldValidation(r *http.Request) string {
	if !strings.Contains(r.URL.RawQuery, "fieldValidation=") {
		return ""
	}
	switch v := query(r).Get("fieldValidation"); v {
	case metav1.FieldValidationIgnore, metav1.FieldValidationWarn, metav1.FieldValidationStrict:
		return v
	}
	return ""
}

// truthy is how Kubernetes reads a boolean query parameter: present and neither "0" nor "false".
func truthy(s string) bool { return s != "" && s != "0" && !strings.EqualFold(s, "false") }

func split(p string) []string {
	p = strings.Trim(p, "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// afterParts returns what follows the first n path elements, keeping a trailing slash.
func afterParts(p string, n int) string {
	p = strings.TrimPrefix(p, "/")
	for ; n > 0; n-- {
		i := strings.IndexByte(p, '/')
		if i < 0 {
			return ""
		}
		p = p[i+1:]
	}
	return p
}
