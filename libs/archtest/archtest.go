// Package archtest holds the house rules that a test can check.
//
// The main calls are [Comments], [Imports] and [Pure], each over one module; the test of this package
// runs all of them over every module of the workspace, so that "go test ./libs/archtest" is the check.
//
// It promises that each failure names the file and gives the reason for the rule. It reads source
// files only: nothing is built, so it also works on a tree that does not compile. Test files may break
// every rule but the one on modules.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Prefix is the path under which all modules of the project stand.
const Prefix = "github.com/keelson/keelson/"

// Module is one module of the workspace, parsed.
type Module struct {
	Name     string // "scheduler"
	Dir      string
	Packages map[string]*Package // by folder in the module; "." is the root
}

// Package is the source of one folder.
type Package struct {
	Folder string
	Files  []*File
}

// File is one parsed source file.
type File struct {
	Path string
	Test bool
	AST  *ast.File
	Fset *token.FileSet
}

// Open parses a module. Generated code, testdata and hidden folders are left out.
func Open(dir string) (*Module, error) {
	m := &Module{Name: filepath.Base(dir), Dir: dir, Packages: map[string]*Package{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != dir && (name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse %s: %w", p, err)
		}
		if ast.IsGenerated(f) {
			return nil
		}
		folder, err := filepath.Rel(dir, filepath.Dir(p))
		if err != nil {
			return err
		}
		folder = filepath.ToSlash(folder)
		if m.Packages[folder] == nil {
			m.Packages[folder] = &Package{Folder: folder}
		}
		m.Packages[folder].Files = append(m.Packages[folder].Files, &File{Path: p, Test: strings.HasSuffix(p, "_test.go"), AST: f, Fset: fset})
		return nil
	})
	return m, err
}

// Workspace gives the folders of the modules in the go.work above dir.
func Workspace(dir string) ([]string, error) {
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.work"))
		if err == nil {
			var out []string
			for line := range strings.SplitSeq(string(data), "\n") {
				if line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "use ")); strings.HasPrefix(line, "./") {
					out = append(out, filepath.Join(dir, line))
				}
			}
			return out, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil, fmt.Errorf("no go.work above: %w", err)
		}
		dir = up
	}
}

// imports gives the import paths of a file with their positions.
func (f *File) imports() map[string]string {
	out := map[string]string{}
	for _, spec := range f.AST.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			out[p] = f.Fset.Position(spec.Pos()).String()
		}
	}
	return out
}

// sorted visits packages in the order of their folders.
func (m *Module) sorted() []*Package {
	var out []*Package
	for _, p := range m.Packages {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *Package) int { return strings.Compare(a.Folder, b.Folder) })
	return out
}

// Comments finds packages without a package comment, or with one that says nothing.
func Comments(m *Module) (faults []string) {
	for _, p := range m.sorted() {
		comment, source := "", false
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			source = true
			if f.AST.Doc != nil && len(f.AST.Doc.Text()) > len(comment) {
				comment = f.AST.Doc.Text()
			}
		}
		if source && len(strings.Fields(comment)) < 10 {
			faults = append(faults, fmt.Sprintf("%s/%s: no package comment worth reading: a newcomer must learn from it what the package knows, its main call and what it promises", m.Name, p.Folder))
		}
	}
	return faults
}

// Imports finds imports that run the wrong way: cmd → root → rooms → pure rooms → libs.
//
// mayImport are the other modules that m may import. pure are the folders of its pure rooms: those may
// import only each other, libs and what lies outside of the project.
func Imports(m *Module, mayImport, pure []string) (faults []string) {
	isPure := func(folder string) bool {
		return slices.ContainsFunc(pure, func(p string) bool { return within(folder, p) })
	}
	for _, p := range m.sorted() {
		for _, f := range p.Files {
			for to, at := range f.imports() {
				rest, ours := strings.CutPrefix(to, Prefix)
				if !ours {
					continue
				}
				module, folder, _ := strings.Cut(rest, "/")
				if module != m.Name {
					if !slices.Contains(mayImport, module) {
						faults = append(faults, fmt.Sprintf("%s: %s imports module %s: daemons meet only over the API, and libs knows no daemon", at, m.Name, module))
					}
					continue
				}
				if f.Test {
					continue
				}
				switch {
				case folder == "" && !within(p.Folder, "cmd"):
					faults = append(faults, fmt.Sprintf("%s: room %s imports the root package: the root wires the rooms, and gives each its part by value", at, p.Folder))
				case within(folder, "cmd"):
					faults = append(faults, fmt.Sprintf("%s: %s imports %s: cmd only reads flags", at, p.Folder, folder))
				case isPure(p.Folder) && !isPure(folder):
					faults = append(faults, fmt.Sprintf("%s: pure room %s imports room %s: a decision may not reach what observes or applies", at, p.Folder, folder))
				}
			}
		}
	}
	slices.Sort(faults)
	return faults
}

func within(folder, parent string) bool {
	ok, err := path.Match(parent, folder)
	return folder == parent || strings.HasPrefix(folder, parent+"/") || err == nil && ok
}

// impure are the imports that a decision does not need, with what to do instead.
var impure = map[string]string{
	"net":                         "names and connections are observed elsewhere and come in as arguments (net/netip is fine)",
	"net/http":                    "requests are made by the room that applies",
	"os":                          "files and environment are read elsewhere and come in as arguments",
	"os/exec":                     "programs are run by the room that applies",
	"math/rand":                   "randomness comes in as a seed, so that a decision can be replayed",
	"math/rand/v2":                "randomness comes in as a seed, so that a decision can be replayed",
	"crypto/rand":                 "randomness comes in as an argument, so that a decision can be replayed",
	"log":                         "a pure room returns its reasons",
	"log/slog":                    "a pure room returns its reasons",
	"k8s.io/klog/v2":              "a pure room returns its reasons",
	"syscall":                     "the system is observed elsewhere",
	"golang.org/x/sys/unix":       "the system is observed elsewhere",
	"k8s.io/client-go/kubernetes": "the API is read and written by the rooms that observe and apply",
}

// clock are the functions of package time that read the clock or wait for it.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// Pure finds what keeps the rooms in these folders from being replayed: clock, network, files, other
// programs, random sources, logs, goroutines. A folder may be a pattern ("controllers/*"); when it ends
// in ".go" it names files ("controllers/*/decide.go").
func Pure(m *Module, folders ...string) (faults []string) {
	for _, p := range m.sorted() {
		for _, f := range p.Files {
			inModule := path.Join(p.Folder, filepath.Base(f.Path))
			if f.Test || !slices.ContainsFunc(folders, func(folder string) bool {
				if strings.HasSuffix(folder, ".go") {
					ok, err := path.Match(folder, inModule)
					return err == nil && ok
				}
				return within(p.Folder, folder)
			}) {
				continue
			}
			for to, at := range f.imports() {
				if why, bad := impure[to]; bad {
					faults = append(faults, fmt.Sprintf("%s: pure room imports %s: %s", at, to, why))
				}
			}
			ast.Inspect(f.AST, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
						faults = append(faults, fmt.Sprintf("%s: pure room calls time.%s: the time comes in as an argument, so that a decision can be replayed", f.Fset.Position(n.Pos()), n.Sel.Name))
					}
				case *ast.GoStmt:
					faults = append(faults, fmt.Sprintf("%s: pure room starts a goroutine: whoever calls it decides on that", f.Fset.Position(n.Pos())))
				}
				return true
			})
		}
	}
	slices.Sort(faults)
	return faults
}

// maxLines is where a file becomes too long to read in one go.
const maxLines = 1000

// Sizes finds source files that want to be split.
func Sizes(m *Module) (faults []string) {
	for _, p := range m.sorted() {
		for _, f := range p.Files {
			if lines := f.Fset.Position(f.AST.FileEnd).Line; !f.Test && lines > maxLines {
				faults = append(faults, fmt.Sprintf("%s: %d lines: a room per concern and a file per part keep a file below %d", f.Path, lines, maxLines))
			}
		}
	}
	return faults
}
