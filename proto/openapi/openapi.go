// Package openapi holds the OpenAPI schemas of the Kubernetes API types as text,
// one line each, sorted by model name ("io.k8s.api.core.v1.Pod"). The text is
// part of the executable and is searched in place: nothing is parsed and nothing
// is put on the heap until somebody asks for one definition.
//
// The text is made by openapi-gen from the types of k8s.io/api; see gen.
package openapi

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"sort"
	"strings"
	"sync"
)

//go:generate go run ./gen

//go:embed definitions.v3.txt
var v3 string

//go:embed definitions.v2.txt
var v2 string

// V3 returns the schema of a model as JSON, references below
// "#/components/schemas/". ok is false when there is no such model.
func V3(model string) (schema string, ok bool) { return find(v3, model) }

// V2 returns the schema of a model as JSON, references below "#/definitions/".
func V2(model string) (schema string, ok bool) { return find(v2, model) }

// Sum identifies the definitions: it changes when any of them does.
var Sum = sync.OnceValue(func() string {
	h := sha256.New()
	h.Write([]byte(v3))
	h.Write([]byte(v2))
	return hex.EncodeToString(h.Sum(nil))
})

// find looks for the line that starts with name and a space, by bisection.
func find(text, name string) (string, bool) {
	lo, hi := 0, len(text)
	for lo < hi {
		start := lo + (hi-lo)/2
		if i := strings.LastIndexByte(text[lo:start], '\n'); i >= 0 {
			start = lo + i + 1
		} else {
			start = lo
		}
		end := start + strings.IndexByte(text[start:], '\n')
		line := text[start:end]
		space := strings.IndexByte(line, ' ')
		switch strings.Compare(line[:space], name) {
		case 0:
			return line[space+1:], true
		case -1:
			lo = end + 1
		default:
			hi = start
		}
	}
	return "", false
}

// Closure returns roots and every model that they refer to, directly or not,
// sorted. Unknown roots are left out.
func Closure(roots ...string) []string {
	seen := map[string]bool{}
	var out []string
	var visit func(string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		def, ok := V3(name)
		if !ok {
			return
		}
		out = append(out, name)
		for _, ref := range References(def) {
			visit(ref)
		}
	}
	for _, r := range roots {
		visit(r)
	}
	sort.Strings(out)
	return out
}

// References returns the models that a schema names in "$ref", in order, with repetitions.
func References(schema string) []string {
	var out []string
	const mark = `"$ref":"#/`
	for {
		i := strings.Index(schema, mark)
		if i < 0 {
			return out
		}
		schema = schema[i+len(mark):]
		end := strings.IndexByte(schema, '"')
		ref := schema[:end]
		out = append(out, ref[strings.LastIndexByte(ref, '/')+1:])
	}
}
