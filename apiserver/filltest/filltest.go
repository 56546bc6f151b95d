// Package filltest fills objects of any kind with values that are easy to get wrong, the same
// for the same seed.
package filltest

import (
	"math/rand"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"
)

// New returns a filler. missing is the share of pointers, lists and maps that it leaves out.
func New(seed int64, missing float64) *randfill.Filler {
	texts := []string{"", "a", "web-0", "a b", `quote " and \`, "<html> & more", "tab\tline\n\b\f\r\x01\x7f", "größe 漢字 \u2028\u2029", "bad \xff\xc3 utf-8", "app.kubernetes.io/name"}
	r := rand.New(rand.NewSource(seed))
	return randfill.NewWithSeed(seed).NilChance(missing).NumElements(0, 3).MaxDepth(14).Funcs(
		func(s *string, c randfill.Continue) { *s = texts[c.Intn(len(texts))] },
		func(t *metav1.Time, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewTime(time.Unix(c.Int63()%4102444800, 0))
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewMicroTime(time.Unix(c.Int63()%4102444800, c.Int63()%1e9))
			}
		},
		func(d *metav1.Duration, c randfill.Continue) {
			d.Duration = time.Duration(c.Int63() >> uint(c.Intn(60)))
		},
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"0", "1", "500m", "128Mi", "1.5Gi", "2k", "-3", "1e3", "100n"}[c.Intn(9)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			*v = []intstr.IntOrString{intstr.FromInt32(0), intstr.FromInt32(-80), intstr.FromString("http"), intstr.FromString("25%")}[c.Intn(4)]
		},
		func(f *metav1.FieldsV1, c randfill.Continue) {
			f.Raw = []byte([]string{`{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}`, `{"k:{\"name\":\"a<b\"}":{}}`}[c.Intn(2)])
		},
		func(e *runtime.RawExtension, c randfill.Continue) {
			if c.Bool() {
				e.Raw = []byte(` {"a": [1, 2.50, "x&y"]} `)
			}
		},
		func(m *map[string]string, c randfill.Continue) {
			if n := r.Intn(4); n > 0 {
				*m = map[string]string{}
				for range n {
					(*m)[texts[c.Intn(len(texts))]] = texts[c.Intn(len(texts))]
				}
			}
		},
	)
}
