package patch

import (
	"math/rand"
	"reflect"
	"strconv"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"

	"github.com/keelson/keelson/apiserver/filltest"
	"github.com/keelson/keelson/apiserver/resources"
)

// alter gives some fields below v the values that they have in other.
func alter(c *randfill.Filler, v, other reflect.Value, depth int) {
	for i := range v.NumField() {
		var what uint8
		c.Fill(&what)
		x, y := v.Field(i), other.Field(i)
		switch {
		case !v.Type().Field(i).IsExported():
			v.Set(other)
			return
		case depth > 1 && x.Kind() == reflect.Struct:
			alter(c, x, y, depth-1)
		case depth > 1 && x.Kind() == reflect.Pointer && x.Type().Elem().Kind() == reflect.Struct && !x.IsNil() && !y.IsNil():
			alter(c, x.Elem(), y.Elem(), depth-1)
		case what%3 == 0:
			x.Set(y)
		case what%3 == 1 && x.Kind() == reflect.Slice && x.Len() > 0 && y.Len() > 0:
			x.Set(reflect.AppendSlice(x.Slice(0, x.Len()-1), y.Slice(0, 1)))
		}
	}
}

// checkRule compares as the library does. It says whether the rule could tell.
func checkRule(t *testing.T, f *Fields, row *resources.Row, a, b resources.Object) bool {
	t.Helper()
	k, err := f.types.of(row)
	if err != nil {
		t.Fatal(err)
	}
	got := k.rule.compare(a, b)
	if got == nil {
		return false
	}
	x, err := f.typedValue(row, a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := f.typedValue(row, b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x.Compare(y)
	if err != nil {
		t.Fatalf("%s: the library refuses it: %v", row.Kind, err)
	}
	if !got.Added.Equals(want.Added) || !got.Modified.Equals(want.Modified) || !got.Removed.Equals(want.Removed) {
		t.Fatalf("%s:\n got %s\nwant %s", row.Kind, got, want)
	}
	for _, s := range []struct {
		got, want interface{ ToJSON() ([]byte, error) }
	}{{got.Added, want.Added}, {got.Modified, want.Modified}, {got.Removed, want.Removed}} {
		g, _ := s.got.ToJSON()
		if w, _ := s.want.ToJSON(); string(g) != string(w) {
			t.Fatalf("%s:\n got %s\nwant %s", row.Kind, g, w)
		}
	}
	return true
}

// What changes from one object of a kind to another is what the library finds, field for field.
func TestCompareIsTheLibrarys(t *testing.T) {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	f := NewFields(reg.Kind)
	for _, row := range resources.Table() {
		if row.Custom != nil {
			continue
		}
		told, all := 0, 0
		for seed := range int64(24) {
			missing := []float64{0.2, 0.5, 0.8, 0.95}[seed%4]
			fill := filltest.New(seed, missing)
			a, b, part := row.New(), row.New(), row.New()
			fill.Fill(a)
			fill.Fill(b)
			mixed := a.DeepCopyObject().(resources.Object)
			alter(fill, reflect.ValueOf(mixed).Elem(), reflect.ValueOf(b).Elem(), 4)
			a, b, mixed, part = bare(row, a), bare(row, b), bare(row, mixed), bare(row, part)
			for _, pair := range [][2]resources.Object{{part, a}, {a, part}, {a, b}, {a, mixed}, {mixed, a}, {a, a}} {
				all++
				if checkRule(t, f, row, pair[0], pair[1]) {
					told++
				}
			}
		}
		if told == 0 && row.Kind != "ControllerRevision" { // whose data may be anything
			t.Errorf("%s: all %d comparisons were for the library", row.Kind, all)
		}
	}
}

// Who creates an object owns what the comparison with an empty one finds, text for text.
func TestCreatedIsTheComparison(t *testing.T) {
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	f := NewFields(reg.Kind)
	told, all := 0, 0
	for _, row := range resources.Table() {
		if row.Custom != nil {
			continue
		}
		for seed := range int64(60) {
			obj := row.New()
			filltest.New(seed, []float64{0.2, 0.5, 0.8, 0.95, 1}[seed%5]).Funcs(noRaw).Fill(obj)
			plainTexts(rand.New(rand.NewSource(seed)), reflect.ValueOf(obj).Elem())
			obj.SetManagedFields(nil)
			w := Write{Row: row, Reset: [][]string{nil, row.Main.Reset, {"spec"}}[seed%3], Manager: "m"}
			all++
			got, ok := f.created(w, obj)
			if !ok {
				continue
			}
			told++
			known := owners{}
			if err := f.book(w, nil, obj, known); err != nil {
				if len(w.Reset) > 0 {
					continue // what is reset is not looked at any more
				}
				t.Fatal(err)
			}
			entries, err := known.encode()
			if err != nil {
				t.Fatal(err)
			}
			var want []byte
			if len(entries) > 0 {
				want = entries[0].FieldsV1.GetRawBytes()
			}
			if string(got) != string(want) {
				t.Fatalf("%s, seed %d:\n got %s\nwant %s", row.Kind, seed, got, want)
			}
		}
	}
	if told < all/2 {
		t.Errorf("%d of %d creations were for the longer way", all-told, all)
	}
}

// plainTexts replaces texts by few words, most of them without anything to escape.
func plainTexts(r *rand.Rand, v reflect.Value) {
	word := func() string {
		w := []string{"", "a", "app.example/x-1", "b2", "TCP", "zz", "9", "10", "a b", "it's", "{[("}[r.Intn(11)]
		if r.Intn(3) > 0 {
			w += strconv.Itoa(r.Intn(1000))
		}
		if r.Intn(500) == 0 {
			w += `"&`
		}
		return w
	}
	switch v.Kind() {
	case reflect.String:
		if v.Len() > 0 && v.CanSet() {
			v.SetString(word())
		}
	case reflect.Pointer:
		if !v.IsNil() {
			plainTexts(r, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				plainTexts(r, v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			plainTexts(r, v.Index(i))
		}
	case reflect.Map:
		if v.IsNil() {
			return
		}
		fresh := reflect.MakeMap(v.Type())
		for _, k := range v.MapKeys() {
			fresh.SetMapIndex(reflect.ValueOf(word()).Convert(k.Type()), v.MapIndex(k))
		}
		v.Set(fresh)
	}
}

// noRaw leaves out raw JSON: the library cannot compare the one with a space in front.
func noRaw(*runtime.RawExtension, randfill.Continue) {}
