// Command gen writes ../definitions.v3.txt and ../definitions.v2.txt: one line
// for every API type, the model name, a space, and its OpenAPI schema as one
// line of JSON, sorted by name.
//
// It runs kube-openapi's openapi-gen over the k8s.io/api packages into a
// throw-away package, compiles that together with a small writer, and deletes
// it. The generated Go code (more than four megabytes that every build would
// compile and every process initialize) therefore never becomes part of Keelson.
// Running it twice changes nothing. Run it by "go generate ./openapi".
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// packages are the ones whose types appear in a served group, or inside one.
var packages = []string{
	"k8s.io/apimachinery/pkg/api/resource",
	"k8s.io/apimachinery/pkg/apis/meta/v1",
	"k8s.io/apimachinery/pkg/runtime",
	"k8s.io/apimachinery/pkg/util/intstr",
	"k8s.io/apimachinery/pkg/version",
	"k8s.io/api/admissionregistration/v1",
	"k8s.io/api/apps/v1",
	"k8s.io/api/authentication/v1",
	"k8s.io/api/authorization/v1",
	"k8s.io/api/autoscaling/v1",
	"k8s.io/api/autoscaling/v2",
	"k8s.io/api/batch/v1",
	"k8s.io/api/certificates/v1",
	"k8s.io/api/coordination/v1",
	"k8s.io/api/core/v1",
	"k8s.io/api/discovery/v1",
	"k8s.io/api/events/v1",
	"k8s.io/api/flowcontrol/v1",
	"k8s.io/api/networking/v1",
	"k8s.io/api/node/v1",
	"k8s.io/api/policy/v1",
	"k8s.io/api/rbac/v1",
	"k8s.io/api/resource/v1",
	"k8s.io/api/scheduling/v1",
	"k8s.io/api/storage/v1",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1",
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1",
}

const writer = `package main

import (
	"bufio"
	"encoding/json"
	"os"
	"sort"
	"strings"

	"k8s.io/kube-openapi/pkg/builder3/util"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/schemamutation"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"%[1]s/openapi/gen/scratch/defs"
)

// models returns every definition with references below prefix. v2 takes the
// schema that a type keeps for OpenAPI v2, and drops defaults, which v2 documents never had.
func models(prefix string, v2 bool) map[string]spec.Schema {
	out := map[string]spec.Schema{}
	all := defs.GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef(prefix + name) })
	for name, def := range all {
		s := def.Schema
		if v, ok := s.Extensions[common.ExtensionV2Schema]; ok {
			if v2 {
				s = v.(spec.Schema)
			} else {
				delete(s.Extensions, common.ExtensionV2Schema)
			}
		}
		if v2 {
			prune := schemamutation.Walker{
				SchemaCallback: func(in *spec.Schema) *spec.Schema {
					if in.Default == nil {
						return in
					}
					c := *in
					c.Default = nil
					return &c
				},
				RefCallback: schemamutation.RefCallbackNoop,
			}
			s = *prune.WalkSchema(&s)
		} else {
			s = *util.WrapRefs(&s)
		}
		out[name] = s
	}
	return out
}

func write(file string, m map[string]spec.Schema) {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	f, err := os.Create(file)
	if err != nil {
		panic(err)
	}
	w := bufio.NewWriter(f)
	for _, n := range names {
		s := m[n]
		raw, err := json.Marshal(&s)
		if err != nil {
			panic(err)
		}
		if strings.ContainsAny(string(raw), "\n\r") || strings.Contains(n, " ") {
			panic("a definition does not fit on a line: " + n)
		}
		w.WriteString(n + " ")
		w.Write(raw)
		w.WriteByte('\n')
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	if err := f.Close(); err != nil {
		panic(err)
	}
}

func main() {
	write("definitions.v3.txt", models("#/components/schemas/", false))
	write("definitions.v2.txt", models("#/definitions/", true))
}
`

const module = "github.com/keelson/keelson/proto"

func main() {
	if err := generate(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate() error {
	scratch, err := filepath.Abs("gen/scratch")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(scratch, "defs"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	args := []string{"run", "k8s.io/kube-openapi/cmd/openapi-gen",
		"--output-dir", filepath.Join(scratch, "defs"), "--output-pkg", module + "/openapi/gen/scratch/defs",
		"--output-file", "zz_generated.go", "--report-filename", os.DevNull}
	if err := run("go", append(args, packages...)...); err != nil {
		return fmt.Errorf("openapi-gen: %w", err)
	}
	main := filepath.Join(scratch, "main.go")
	if err := os.WriteFile(main, fmt.Appendf(nil, writer, module), 0o644); err != nil {
		return err
	}
	return run("go", "run", "./gen/scratch")
}

func run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
